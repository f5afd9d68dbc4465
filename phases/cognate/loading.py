"""From a model directory to a TinyTitan that is ready to use."""

from dataclasses import dataclass

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from phases import modeldir
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.contract import ModelRef
from phases.corpus.tokenizer import load_tokenizer
from phases.errors import ArtifactError

FORMAT = "tinytitan"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, its tokenizer and where they came from."""

    ref: ModelRef
    model: TinyTitan
    tokenizer: Tokenizer


def model_config(config: TitanConfig) -> dict[str, object]:
    """Return the content of `config.json`."""
    return {"model_type": FORMAT, "architectures": ["TinyTitan"]} | config.model_dump(mode="json")


def load_model(uri: str, sha256: str | None = None, device: str | None = None) -> LoadedModel:
    """Open a model directory, verify its hashes and build the model on `device` (a GPU where there is one).

    Raises `ArtifactError` naming a file that is missing, altered or not of this architecture.
    """
    ref = modeldir.open_ref(uri, sha256)
    values = modeldir.load_model_config(uri)
    if values.pop("model_type", None) != FORMAT:
        raise ArtifactError(f"{uri}/{modeldir.CONFIG}: not a {FORMAT} model")
    values.pop("architectures", None)
    try:
        model = TinyTitan(TitanConfig.model_validate(values))
        model.load_state_dict(modeldir.load_tensors(uri))
    except (ValidationError, RuntimeError) as error:
        raise ArtifactError(f"{uri}: configuration and weights do not fit this version ({error})") from error
    tokenizer = load_tokenizer(modeldir.load_tokenizer_json(uri))
    return LoadedModel(ref, model.eval().to(device or best_device()), tokenizer)


def best_device() -> str:
    """Return `cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"
