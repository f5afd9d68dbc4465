"""Phase 3 as plain functions: the stages to train, training one, and the result with its claims.

A stage starts from the model of the stage before, so a killed phase repeats at most the steps since its last
checkpoint. Beside the stages a control reads the same rows without thoughts: what the phase is worth is the difference
to that. The coordinator decides where and when each function runs and keeps the checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import torch

from phases import modeldir, rundir, storage
from phases.cognate.loading import best_device, load_model, model_config
from phases.cognate.titan import TinyTitan
from phases.contract import ModelRef, PhaseResult
from phases.corpus.packed import Corpus
from phases.errors import ArtifactError
from phases.probes import RunFiles
from phases.quietstar.claims import claims_of, notes_of
from phases.quietstar.config import QuietStarConfig, StageConfig
from phases.quietstar.internalise import Internaliser
from phases.quietstar.loading import FOLDER as THINKING
from phases.quietstar.loading import (
    LoadedThinker,
    can_think,
    load_thinker,
    require_markers,
    save_thinker,
    thinking_ref,
)
from phases.quietstar.measure import examples, how_to_use
from phases.quietstar.thinker import Thinker
from phases.seeds import child_seed
from phases.training.loop import StepReport, train
from phases.training.state import TrainState

FOLDER = rundir.phase_folder("quietstar")
MODEL, CONTROL, EXAMPLES = f"{FOLDER}/model", f"{FOLDER}/control", f"{FOLDER}/thoughts.json"


@dataclass(frozen=True)
class Job:
    """A stage to train, or the control. Paths are relative to the run directory; `factor` is for after a rollback."""

    name: str
    number: int
    stage: StageConfig
    parent: str  # model directory that it starts from
    base: str  # model directory that the phase started from
    out: str
    factor: float = 1.0


def jobs(config: QuietStarConfig, parent: str) -> list[Job]:
    """Return the stages in order. The last thinking one writes the phase's model; `parent` is the phase's input."""
    made, start = list[Job](), parent
    thinking = [number for number, stage in enumerate(config.stages) if stage.length]
    for number, stage in enumerate(config.stages):
        last = number == thinking[-1]
        out = MODEL if last else f"{FOLDER}/{'stages' if stage.length else 'thought_free'}/{number}"
        made.append(Job(f"stage {number}", number, stage, start, parent, out))
        start = out
    return made


def control_job(config: QuietStarConfig, parent: str) -> Job:
    """Return the job of a model that is trained as long as the thinking one, on the same rows, without thoughts."""
    stages = [stage for stage in config.stages if stage.length]
    steps = sum(stage.steps for stage in stages)
    plain = StageConfig(length=0, steps=steps, learning_rate=stages[0].learning_rate)
    return Job("control", 0, plain, parent, parent, CONTROL)


def train_stage(
    job: Job,
    run: str,
    config: QuietStarConfig,
    seed: int,
    *,
    state: TrainState | None,
    save: Callable[[TrainState], None],
    on_step: Callable[[StepReport], None],
) -> ModelRef:
    """Train a stage from `state` or from its start, and write its model directory once.

    A model that is already there is verified and returned. Raises `ArtifactError` where the parent is damaged or its
    tokenizer lacks the markers, and `NumericalError` where training diverges or a reward is not finite.
    """
    out = storage.join(run, job.out)
    if modeldir.is_model(out) and (job.stage.length == 0 or can_think(out)):
        return modeldir.open_ref(out).model_copy(update={"uri": job.out})
    corpus = Corpus.of_run(run)
    torch.manual_seed(child_seed(seed, "quietstar", job.number))
    learner = _learner(job, RunFiles(run), config)
    data_seed = child_seed(seed, "quietstar", job.number, "data")
    rate = job.stage.learning_rate * job.factor
    training = config.training.model_copy(update={"steps": job.stage.steps, "learning_rate": rate})
    rows, mix = training.batch_size * training.accumulate, config.mix.shares

    def batches(step: int) -> torch.Tensor:
        found = corpus.batch(step, batch_size=rows, seq_len=training.seq_len, mix=mix, seed=data_seed)
        return torch.from_numpy(found)

    train(learner, batches, training, state=state, on_step=on_step, save=save)
    return _write(job, run, learner.eval(), corpus, config, seed)


def _learner(job: Job, files: RunFiles, config: QuietStarConfig) -> Thinker | Internaliser | TinyTitan:
    """Return what a stage trains, as its parent left it; without thoughts, a model that had them is to keep them."""
    uri, device = files.path(job.parent), best_device()
    loaded = load_model(uri, device=device)
    require_markers(loaded.tokenizer, uri)
    if job.stage.length == 0:
        return Internaliser(load_thinker(uri, device).thinker).to(device) if can_think(uri) else loaded.model
    thought = config.thought.model_copy(
        update={
            "length": job.stage.length,
            "min_length": min(config.thought.min_length, job.stage.length) if config.thought.min_length else None,
        }
    )
    reference = load_model(files.path(job.base), device=device).model if config.learning.kl_weight else None
    thinker = Thinker(loaded.model, thought, config.learning, reference=reference)
    if can_think(uri):
        before = load_thinker(uri, device).thinker
        thinker.load_state_dict(before.state_dict())
    return thinker.to(device)


def _write(
    job: Job, run: str, learner: Thinker | Internaliser | TinyTitan, corpus: Corpus, config: QuietStarConfig, seed: int
) -> ModelRef:
    parent = modeldir.open_ref(storage.join(run, job.parent))
    lineage = modeldir.Lineage(
        phase="quietstar",
        seed=seed,
        parents={"parent": parent.sha256},
        config={"stage": job.stage.model_dump(), "thought": config.thought.model_dump(mode="json")},
    )
    out, tokenizer = storage.join(run, job.out), corpus.tokenizer.to_str()
    if isinstance(learner, Thinker):
        rows = text_rows(corpus, config, "validation").to(learner.head_weight.device)
        threshold, helps = how_to_use(learner, rows, corpus.token_bytes, seed)
        ref = save_thinker(out, learner, tokenizer=tokenizer, lineage=lineage, entropy_threshold=threshold, helps=helps)
    else:
        model = learner.model if isinstance(learner, Internaliser) else learner
        ref = save_plain(out, model, tokenizer, lineage)
    return ref.model_copy(update={"uri": job.out})


def save_plain(uri: str, model: TinyTitan, tokenizer: str, lineage: modeldir.Lineage) -> ModelRef:
    """Write a model that does not think."""
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    return modeldir.save_model(
        uri, tensors=tensors, config=model_config(model.config), tokenizer=tokenizer, lineage=lineage
    )


def text_rows(corpus: Corpus, config: QuietStarConfig, split: str) -> torch.Tensor:
    """Return the first pieces of a split, (R, T + 1), fewer than configured where the split is short.

    Raises `ArtifactError` where it has no two pieces.
    """
    length = config.training.seq_len + 1
    tokens = corpus.tokens(split)[: config.evaluation.rows * length]
    count = len(tokens) // length
    if count < 2:
        raise ArtifactError(f"{split} split has {len(tokens)} tokens, too few for two pieces of {length}")
    return torch.from_numpy(tokens[: count * length].astype("int64")).view(count, length)


def finish(files: RunFiles, config: QuietStarConfig, seed: int, start: datetime, parent: str) -> PhaseResult:
    """Measure the model of the last thinking stage and return the result of the phase."""
    loaded = open_thinker(files)
    corpus = Corpus.of_run(files.uri)
    rows = text_rows(corpus, config, "test").to(loaded.thinker.head_weight.device)
    table = examples(loaded.thinker, rows, loaded.tokenizer, config.evaluation.examples)
    storage.write_json(files.path(EXAMPLES), table)
    claims, (low, high) = claims_of(files, config, seed, parent)
    values = {made.key: made.value for made in claims}
    thought_free = [job.out for job in jobs(config, parent) if job.stage.length == 0]
    thinking = thinking_ref(files.path(MODEL)).model_copy(update={"uri": f"{MODEL}/{THINKING}"})
    end = datetime.now(start.tzinfo)
    return PhaseResult(
        success=True,
        phase="quietstar",
        model=loaded.ref.model_copy(update={"uri": MODEL}),
        models={"thinking": thinking, "control": _ref(files, CONTROL)}
        | ({"thought_free": _ref(files, thought_free[-1])} if thought_free else {}),
        metrics={
            "thought_length": config.thought.length,
            "num_thoughts": config.thought.parallel,
            "coherence_threshold": config.coherence_threshold,
            "training_steps": sum(stage.steps for stage in config.stages),
            "final_entropy": values["quietstar/thought_entropy"],
            "mixing_weight_alpha": values["quietstar/mixing_weight"],
            "ready_for_compression": float(values["quietstar/coherence/total"] >= config.coherence_threshold),
            "quietstar/text_gain_low": low,
            "quietstar/text_gain_high": high,
        },
        claims=tuple(claims),
        artifacts={"thoughts": EXAMPLES, "thinking": f"{MODEL}/{THINKING}"},
        notes=notes_of(claims, (low, high), helps=loaded.helps),
        config=config.model_dump(mode="json") | {"seed": seed},
        start_time=start,
        end_time=end,
        duration_seconds=(end - start).total_seconds(),
    )


def open_thinker(files: RunFiles) -> LoadedThinker:
    """Return the phase's model, loaded once per sitting."""
    if "quietstar/thinker" not in files.cache:
        files.cache["quietstar/thinker"] = load_thinker(files.path(MODEL))
    loaded: LoadedThinker = files.cache["quietstar/thinker"]
    return loaded


def _ref(files: RunFiles, path: str) -> ModelRef:
    return modeldir.open_ref(files.path(path)).model_copy(update={"uri": path})
