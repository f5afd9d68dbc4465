"""A thinking model on disk: an ordinary model directory, and beside its files a folder `thinking/` with what thinks.

That folder is a model directory of its own. It holds the markers and the mixing head, and names by its hash the model
that they belong to, so that one cannot be used with another. Whoever does not think reads the model as it is.
"""

from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from phases import modeldir, storage
from phases.cognate.loading import LoadedModel, load_model, model_config
from phases.contract import ModelRef
from phases.corpus.special import END_THOUGHT, START_THOUGHT
from phases.errors import ArtifactError
from phases.quietstar.chain import END_ID, START_ID
from phases.quietstar.config import LearningConfig, ThoughtConfig
from phases.quietstar.thinker import Thinker
from phases.settings import Settings

FOLDER, FORMAT = "thinking", "quietstar"
_OWN = ("markers", "mixing.")


class ThinkingConfig(Settings):
    """The content of `thinking/config.json`."""

    model_type: str = Field(default=FORMAT, pattern=f"^{FORMAT}$")
    thought: ThoughtConfig
    learning: LearningConfig
    entropy_threshold: float = Field(ge=0, description="nats of a prediction from which `auto` thinks")
    helps: bool = Field(description="whether thoughts made validation text likelier; `auto` never thinks else")


@dataclass(frozen=True)
class LoadedThinker:
    """A thinker in evaluation mode, its tokenizer and where they came from."""

    ref: ModelRef
    thinker: Thinker
    tokenizer: Tokenizer
    entropy_threshold: float = field(default=0.0)
    helps: bool = field(default=True)


def require_markers(tokenizer: Tokenizer, what: str) -> None:
    """Raise `ArtifactError` where a tokenizer lacks the reserved tokens that thoughts stand between."""
    for token, number in ((START_THOUGHT, START_ID), (END_THOUGHT, END_ID)):
        if tokenizer.token_to_id(token) != number:
            raise ArtifactError(
                f"{what}: its tokenizer has no {token} with the id {number}; use a model of forge's own tokenizer"
            )


def save_thinker(
    uri: str, thinker: Thinker, *, tokenizer: str, lineage: modeldir.Lineage, entropy_threshold: float, helps: bool
) -> ModelRef:
    """Write the model and what thinks with it; return the model's reference."""
    tensors = {name: tensor.cpu() for name, tensor in thinker.model.state_dict().items()}
    ref = modeldir.save_model(
        uri, tensors=tensors, config=model_config(thinker.model.config), tokenizer=tokenizer, lineage=lineage
    )
    save_thinking(uri, thinker, tokenizer=tokenizer, lineage=lineage, entropy_threshold=entropy_threshold, helps=helps)
    return ref


def save_thinking(
    uri: str, thinker: Thinker, *, tokenizer: str, lineage: modeldir.Lineage, entropy_threshold: float, helps: bool
) -> ModelRef:
    """Write what thinks beside the model that is in `uri` already; return the reference of these parts."""
    config = ThinkingConfig(
        thought=thinker.config, learning=thinker.learning, entropy_threshold=entropy_threshold, helps=helps
    )
    ref = modeldir.save_model(
        storage.join(uri, FOLDER),
        tensors={name: tensor.cpu() for name, tensor in thinker.state_dict().items() if name.startswith(_OWN)},
        config=config.model_dump(mode="json"),
        tokenizer=tokenizer,
        lineage=lineage.model_copy(update={"parents": {"model": modeldir.open_ref(uri).sha256}}),
    )
    return ref.model_copy(update={"format": FORMAT})


def thinking_ref(uri: str) -> ModelRef:
    """Return the reference of what thinks in a model directory, its hashes verified."""
    ref = modeldir.open_ref(storage.join(uri, FOLDER))
    return ref.model_copy(update={"format": FORMAT})


def can_think(uri: str) -> bool:
    """Say whether a model directory has what thinks with it."""
    return modeldir.is_model(storage.join(uri, FOLDER))


def load_thinker(uri: str, device: str | None = None) -> LoadedThinker:
    """Open a thinking model and verify all hashes.

    Raises `ArtifactError` where it does not think, where its parts are of different models or where one is damaged.
    """
    loaded = load_model(uri, device=device)
    return attach(loaded, uri)


def thinker_of(loaded: LoadedModel, uri: str) -> LoadedThinker | None:
    """Return the thinker of a model that is open already, None where it has not learned to think."""
    return attach(loaded, uri) if can_think(uri) else None


def attach(loaded: LoadedModel, uri: str) -> LoadedThinker:
    """Return the thinker of a model that is open already."""
    folder = storage.join(uri, FOLDER)
    if not can_think(uri):
        raise ArtifactError(f"{folder}: missing; this model has not learned to think (run phase quietstar)")
    modeldir.open_ref(folder)
    if (parent := modeldir.load_lineage(folder).parents.get("model")) != loaded.ref.sha256:
        raise ArtifactError(f"{folder}: belongs to another model ({str(parent)[:12]}...)")
    require_markers(loaded.tokenizer, uri)
    try:
        config = ThinkingConfig.model_validate(modeldir.load_model_config(folder))
        thinker = Thinker(loaded.model, config.thought, config.learning)
        _load_own(thinker, modeldir.load_tensors(folder))
    except (ValidationError, RuntimeError) as error:
        raise ArtifactError(f"{folder}: does not fit this version ({error})") from error
    thinker = thinker.eval().to(loaded.model.embedding.weight.device)
    return LoadedThinker(loaded.ref, thinker, loaded.tokenizer, config.entropy_threshold, config.helps)


def _load_own(thinker: Thinker, tensors: dict[str, Tensor]) -> None:
    wanted: dict[str, Any] = {name: t for name, t in thinker.state_dict().items() if name.startswith(_OWN)}
    if set(tensors) != set(wanted):
        raise RuntimeError(f"tensors {sorted(tensors)}, expected {sorted(wanted)}")
    thinker.load_state_dict(tensors, strict=False)
