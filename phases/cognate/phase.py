"""Phase 1 as plain functions: which models to train, training one, measuring one, choosing among them.

All three variants start from one warm-up, because models of different initialisations cannot be merged; the warm-up's
model is kept as the base that task vectors are taken from. The coordinator decides where and when each function runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import torch
from pydantic import BaseModel

from phases import modeldir, rundir, storage
from phases.cognate.config import CognateConfig, VariantConfig
from phases.cognate.generate import Sampling, stream
from phases.cognate.loading import best_device, load_model, model_config
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.contract import Baseline, Claim, ModelRef, PhaseResult, Probe
from phases.corpus.packed import Corpus
from phases.corpus.tokenizer import encode
from phases.errors import ArtifactError
from phases.probes import RunFiles, claim, measure
from phases.seeds import child_seed
from phases.training.config import TrainingConfig
from phases.training.loop import StepReport, train
from phases.training.state import TrainState

FOLDER = rundir.phase_folder("cognate")
WARM_UP = "warm_up"
PROMPTS = ("def read_lines(path):\n", "import ", "class Queue:\n")


@dataclass(frozen=True)
class Job:
    """One model to train. `parent` is the role whose weights it starts from; None starts from the initialisation."""

    role: str
    model: TitanConfig
    training: TrainingConfig
    mix: dict[str, float]
    parent: str | None


def model_path(role: str) -> str:
    """Return where the model of a role is, relative to the run directory."""
    return f"{FOLDER}/models/{role}"


def warm_up_job(config: CognateConfig, vocab_size: int) -> Job:
    """Return the shared start."""
    model = config.model.model_copy(update={"vocab_size": vocab_size})
    return Job(WARM_UP, model, config.warm_up, config.warm_up_mix.shares, None)


def variant_job(config: CognateConfig, variant: VariantConfig, vocab_size: int) -> Job:
    """Return the job of a variant: the shared architecture with its own halting, capacity and mix."""
    memory = config.model.memory.model_copy(update={"capacity": variant.memory_capacity})
    changes = {"vocab_size": vocab_size, "halt_threshold": variant.halt_threshold, "memory": memory}
    return Job(
        variant.name, config.model.model_copy(update=changes), config.training, variant.mix.shares, parent=WARM_UP
    )


def smaller(job: Job) -> Job:
    """Return a job that needs less memory: half the rows in a forward pass, twice the passes, the same rows in all."""
    training = job.training
    if training.batch_size % 2:
        return job
    halved = {"batch_size": training.batch_size // 2, "accumulate": 2 * training.accumulate}
    return replace(job, training=training.model_copy(update=halved))


def pretrain(
    job: Job,
    run: str,
    seed: int,
    *,
    state: TrainState | None,
    save: Callable[[TrainState], None],
    on_step: Callable[[StepReport], None],
) -> ModelRef:
    """Train the model of a job from `state` or from its start, and write its model directory once.

    A model that is already there is verified and returned. Raises `ArtifactError` where the parent is damaged and
    `NumericalError` where training diverges.
    """
    out = storage.join(run, model_path(job.role))
    if modeldir.is_model(out):
        return _relative(modeldir.open_ref(out), job.role)
    corpus = Corpus.of_run(run)
    torch.manual_seed(child_seed(seed, "cognate", "initialisation"))
    model = TinyTitan(job.model)
    parents = {}
    if job.parent is not None:
        parent = storage.join(run, model_path(job.parent))
        parents = {job.parent: modeldir.open_ref(parent).sha256}
        model.load_state_dict(modeldir.load_tensors(parent))
    model.to(best_device())
    data_seed = child_seed(seed, "cognate", job.role, "data")
    rows = job.training.batch_size * job.training.accumulate

    def batches(step: int) -> torch.Tensor:
        return torch.from_numpy(
            corpus.batch(step, batch_size=rows, seq_len=job.training.seq_len, mix=job.mix, seed=data_seed)
        )

    train(model, batches, job.training, state=state, on_step=on_step, save=save)
    lineage = modeldir.Lineage(
        phase="cognate",
        seed=seed,
        parents=parents,
        config={"role": job.role, "training": job.training.model_dump(mode="json"), "mix": job.mix},
    )
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    ref = modeldir.save_model(
        out, tensors=tensors, config=model_config(job.model), tokenizer=corpus.tokenizer.to_str(), lineage=lineage
    )
    return _relative(ref, job.role)


class Findings(BaseModel):
    """What was measured of one model."""

    claims: list[Claim]
    samples: list[dict[str, str]]


def evaluate(run: str, role: str, config: CognateConfig, seed: int) -> None:
    """Measure the model of a role on held-out data, each number beside its baseline, and write the findings once."""
    path = storage.join(run, _findings_path(role))
    if storage.exists(path):
        return
    files = RunFiles(run)
    claims = [*_text_claims(files, role, config), *_behaviour_claims(files, role, config, seed)]
    storage.write_json(path, Findings(claims=claims, samples=_samples(run, role)).model_dump(mode="json"))


def _findings_path(role: str) -> str:
    return f"{FOLDER}/findings/{role}.json"


def _baseline_claims(run: str, config: CognateConfig) -> list[Claim]:
    """Return what the same held-out text costs without a neural network."""
    arguments = {"tokens": config.evaluation.text_tokens}
    return [
        claim(
            RunFiles(run),
            f"cognate/baseline/{name}_bits_per_byte",
            Probe(name=f"corpus/{name}_bits_per_byte", arguments=arguments),
            unit="bits per byte",
            better="lower",
            tolerance=1e-6,
        )
        for name in ("unigram", "five_gram", "xz")
    ]


def _samples(run: str, role: str) -> list[dict[str, str]]:
    """Return a few generations of a model, for a person to look at."""
    loaded = load_model(storage.join(run, model_path(role)))
    shown = []
    for prompt in PROMPTS:
        sampling = Sampling(max_new_tokens=48, temperature=0.7, seed=1)
        generation = stream(loaded.model, loaded.tokenizer, encode(loaded.tokenizer, prompt), sampling)
        text = "".join(generation.pieces)
        shown.append({"variant": role, "prompt": prompt, "completion": text})
    return shown


def finish(run: str, config: CognateConfig, seed: int, start: datetime) -> PhaseResult:
    """Choose the variant with the fewest bits per byte on the validation split and write what the phase hands on.

    Variants without findings are left out. Raises `ArtifactError` where there are none at all.
    """
    roles = [v.name for v in config.variants if storage.exists(storage.join(run, _findings_path(v.name)))]
    if not roles:
        raise ArtifactError(f"{storage.join(run, FOLDER)}/findings: no variant was trained and measured")
    findings = [Findings.model_validate(storage.read_json(storage.join(run, _findings_path(role)))) for role in roles]
    validation = {role: _validation(run, role, config) for role in roles}
    best = min(roles, key=validation.__getitem__)
    source, target = storage.join(run, model_path(best)), storage.join(run, f"{FOLDER}/model")
    lineage = modeldir.load_lineage(source)
    ref = modeldir.save_model(
        target,
        tensors=modeldir.load_tensors(source),
        config=modeldir.load_model_config(source),
        tokenizer=modeldir.load_tokenizer_json(source),
        lineage=lineage.model_copy(update={"parents": {best: lineage.files[modeldir.WEIGHTS]}}),
    )
    models = {
        role: _relative(modeldir.open_ref(storage.join(run, model_path(role))), role) for role in (WARM_UP, *roles)
    }
    summary = {
        "chosen": best,
        "validation_bits_per_byte": validation,
        "models": {role: model.model_dump() for role, model in models.items()},
    }
    storage.write_json(storage.join(run, f"{FOLDER}/cognate_models_summary.json"), summary)
    storage.write_json(storage.join(run, f"{FOLDER}/samples.json"), [s for found in findings for s in found.samples])
    end = datetime.now(start.tzinfo)
    return PhaseResult(
        success=True,
        phase="cognate",
        model=ref.model_copy(update={"uri": f"{FOLDER}/model"}),
        models=models,
        metrics={f"validation_bits_per_byte/{role}": value for role, value in validation.items()},
        claims=(*_baseline_claims(run, config), *(made for found in findings for made in found.claims)),
        artifacts={
            "cognate_models_summary.json": f"{FOLDER}/cognate_models_summary.json",
            "samples": f"{FOLDER}/samples.json",
            **{f"cognate_foundation_{number}": model_path(role) for number, role in enumerate(roles, start=1)},
        },
        config=config.model_dump(mode="json") | {"seed": seed},
        start_time=start,
        end_time=end,
        duration_seconds=(end - start).total_seconds(),
    )


def _relative(ref: ModelRef, role: str) -> ModelRef:
    return ref.model_copy(update={"uri": model_path(role)})


def _validation(run: str, role: str, config: CognateConfig) -> float:
    return measure(RunFiles(run), _text_probe("bits_per_byte", role, config, "validation")).value


def _text_probe(measurement: str, role: str, config: CognateConfig, split: str = "test") -> Probe:
    sizes = {"tokens": config.evaluation.text_tokens, "streams": config.evaluation.streams}
    return Probe(name=f"cognate/{measurement}", arguments={"model": model_path(role), "split": split, **sizes})


def _text_claims(files: RunFiles, role: str, config: CognateConfig) -> list[Claim]:
    five_gram = measure(
        files, Probe(name="corpus/five_gram_bits_per_byte", arguments={"tokens": config.evaluation.text_tokens})
    )
    return [
        claim(
            files,
            f"cognate/{role}/parameters",
            Probe(name="cognate/parameters", arguments={"model": model_path(role)}),
            unit="parameters",
            better="lower",
            tolerance=0,
        ),
        claim(
            files,
            f"cognate/{role}/bits_per_byte",
            _text_probe("bits_per_byte", role, config),
            unit="bits per byte",
            better="lower",
            tolerance=0.005,
            baseline=Baseline(what="5-gram byte model", value=five_gram.value),
            samples_to=f"{FOLDER}/samples/{role}-bits_per_byte.json",
        ),
        claim(
            files,
            f"cognate/{role}/ponder_steps",
            _text_probe("ponder_steps", role, config),
            unit="steps per token",
            better="lower",
            tolerance=0.02,
            baseline=Baseline(what="no halting", value=config.model.train_ponder_steps),
        ),
        claim(
            files,
            f"cognate/{role}/memory_hit_rate",
            _text_probe("memory_hit_rate", role, config),
            unit="share of attention",
            better="higher",
            tolerance=0.01,
        ),
    ]


def _behaviour_claims(files: RunFiles, role: str, config: CognateConfig, seed: int) -> list[Claim]:
    tasks = sorted({task for variant in config.variants for task in variant.mix.shares} - {"text"})
    made = []
    for task in tasks:
        count = config.evaluation.task_instances
        arguments = {"task": task, "count": count, "seed": child_seed(seed, "cognate", "evaluation")}
        base = Probe(name="cognate/exact_match", arguments={"model": model_path(WARM_UP), **arguments})
        made.append(
            claim(
                files,
                f"cognate/{role}/exact_match/{task}",
                Probe(name="cognate/exact_match", arguments={"model": model_path(role), **arguments}),
                unit="share of instances",
                better="higher",
                tolerance=1.5 / count,
                baseline=Baseline(what="shared warm-up", value=measure(files, base).value),
                samples_to=f"{FOLDER}/samples/{role}-{task}.json",
            )
        )
    return made
