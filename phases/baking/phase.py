"""Phase 6 as plain functions: the hand-off checked, the model taught to follow prompts, the prompt baked, the result.

Each function does one agent's work on the files of the run, may be called again, and leaves evidence. Optimising the
baked model and packing it are in `tuning.py`, judging it in `judge.py`.
"""

import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from phases import modeldir, storage
from phases.baking.config import BakingConfig
from phases.baking.dialogues import Prompt
from phases.baking.evidence import FOLDER, Evidence, digests, keep
from phases.baking.examples import baking_examples, check_prompt, draw_requests, retention_examples
from phases.baking.instruct import Batches, Pupil, dialogue_batches
from phases.baking.lessons import Lesson, read_lessons
from phases.baking.measure import divergence
from phases.baking.prompt_baking import bake, check_finite
from phases.cognate.loading import LoadedModel, load_model, model_config
from phases.contract import ModelRef
from phases.corpus.packed import CORPUS, Corpus
from phases.errors import NumericalError
from phases.probes import RunFiles
from phases.rundir import CORPUS as CORPUS_FOLDER
from phases.seeds import child_seed
from phases.training.loop import StepReport, train
from phases.training.spill import spilled
from phases.training.state import TrainState

STEERABLE, MODEL, STATE = f"{FOLDER}/steerable", f"{FOLDER}/model", f"{FOLDER}/baked_model.pt"
Save = Callable[[TrainState], None]
OnStep = Callable[[StepReport], None]


@dataclass(frozen=True)
class Order:
    """What is to be baked into which model of which run."""

    run: str
    parent: ModelRef
    config: BakingConfig
    seed: int
    frugal: bool = False  # train in less memory: slower, and the same bytes

    @property
    def lessons(self) -> dict[str, Lesson]:
        """The tools to teach."""
        return read_lessons(self.config.tools)

    @property
    def prompt(self) -> Prompt:
        """What is baked."""
        return Prompt.of(self.config.persona, tuple(self.lessons))

    def path(self, relative: str) -> str:
        """Return where a path of the run is; what is absolute stays so."""
        return RunFiles(self.run).path(relative)

    def memory(self) -> AbstractContextManager[None]:
        """Return the context that training runs in."""
        return spilled() if self.frugal else nullcontext()

    def open(self, relative: str) -> LoadedModel:
        """Return a model of the run."""
        return load_model(self.path(relative), device="cpu")


def hand_off(order: Order) -> Evidence:
    """Check all that can be checked before work starts: hashes, weights, prompt, tools.

    Raises `ArtifactError`, `NumericalError` or `ConfigError` naming what is wrong.
    """
    loaded = load_model(order.path(order.parent.uri), order.parent.sha256, device="cpu")
    check_finite(loaded.model)
    check_prompt(order.prompt.text, loaded.tokenizer, loaded.model)
    measured = {"model": order.parent.sha256, "parameters": order.parent.parameters, "prompt": order.prompt.text}
    return keep(
        order.run, Evidence(agent="BakingCoordinator", step="Phase5Handoff", work="hand_off", measured=measured)
    )


def instruct(order: Order, *, state: TrainState | None, save: Save, on_step: OnStep) -> ModelRef:
    """Teach the model to follow prompts and write it once; with no steps it stays as it is."""
    if (done := _done(order, STEERABLE)) is not None:
        return done
    loaded, config = (
        load_model(order.path(order.parent.uri), order.parent.sha256, device="cpu"),
        order.config.instruction,
    )
    pupil, training = Pupil(loaded.model), config.training
    batches = dialogue_batches(
        loaded.tokenizer,
        order.lessons,
        batch_size=training.batch_size * training.accumulate,
        seed=child_seed(order.seed, "baking", "instruct"),
        copying_steps=config.copying_steps,
        text=_text(order),
        text_share=config.text_share,
    )
    with order.memory():
        train(pupil, batches, training, state=state, on_step=on_step, save=save)
    return _write(order, STEERABLE, dict(loaded.model.state_dict()), loaded, order.parent.sha256)


def bake_model(order: Order, *, state: TrainState | None, save: Save, on_step: OnStep) -> ModelRef:
    """Bake the prompt into the taught model, merge, and write the phase's model once.

    Raises `NumericalError` where training diverges, or leaves the model further from the prompted one than it was.
    """
    if (done := _done(order, MODEL)) is not None:
        return done
    teacher, student, config = order.open(STEERABLE), order.open(STEERABLE), order.config.prompt_baking
    asked = draw_requests(order.lessons, "baking", config.trajectories, order.seed)
    examples = baking_examples(teacher.model, teacher.tokenizer, order.prompt, asked, order.seed)
    others = asked[: math.ceil(config.trajectories * config.retention)]
    retained = retention_examples(teacher.model, teacher.tokenizer, order.lessons, others, order.prompt, order.seed)
    with order.memory():
        adapted = bake(student.model, examples, retained, config, order.seed, state=state, save=save, on_step=on_step)
    tensors = adapted.merged(config.strength)
    baked = adapted.plain(config.strength)
    before, after = (divergence(teacher.model, model, examples[:64]) for model in (teacher.model, baked))
    if config.training.steps and after >= before:
        raise NumericalError(
            f"baking left {after:.4f} nats of {before:.4f}; lower prompt_baking.training.learning_rate"
        )
    ref = _write(order, MODEL, tensors, teacher, teacher.ref.sha256)
    buffer = io.BytesIO()
    torch.save({name: tensor.detach() for name, tensor in tensors.items()}, buffer)  # the documented artifact's form
    storage.write_bytes(order.path(STATE), buffer.getvalue())
    measured = {"kl_before": before, "kl_after": after, "trajectories": len(examples), "retained": len(retained)}
    measured |= {"adapter_parameters": sum(p.numel() for p in adapted.parameters()), "strength": config.strength}
    files = digests(order.run, f"{MODEL}/{modeldir.WEIGHTS}", STATE)
    keep(
        order.run,
        Evidence(agent="ModelOptimizer", step="ModelBaking", work="bake", measured=measured, files=files),
    )
    return ref


def _done(order: Order, path: str) -> ModelRef | None:
    """Return a model of the run that is there already."""
    if not modeldir.is_model(order.path(path)):
        return None
    return modeldir.open_ref(order.path(path)).model_copy(update={"uri": path})


def _text(order: Order) -> Batches | None:
    """Return step -> rows of plain text of the run's corpus; None where the run has none."""
    if not storage.exists(order.path(f"{CORPUS_FOLDER}/{CORPUS}")):
        return None
    corpus, training = Corpus.of_run(order.run), order.config.instruction.training
    seed = child_seed(order.seed, "baking", "text")

    def batch(step: int) -> Tensor:
        rows = corpus.batch(
            step,
            batch_size=training.batch_size * training.accumulate,
            seq_len=training.seq_len,
            mix={"text": 1.0},
            seed=seed,
        )
        return torch.from_numpy(rows)

    return batch


def _write(order: Order, path: str, tensors: dict[str, Tensor], loaded: LoadedModel, parent: str) -> ModelRef:
    lineage = modeldir.Lineage(
        phase="baking", seed=order.seed, parents={"parent": parent}, config=order.config.model_dump(mode="json")
    )
    ref = modeldir.save_model(
        order.path(path),
        tensors={name: tensor.detach().cpu() for name, tensor in tensors.items()},
        config=model_config(loaded.model.config),
        tokenizer=loaded.tokenizer.to_str(),
        lineage=lineage,
    )
    return ref.model_copy(update={"uri": path})
