"""Phase 4 as plain functions: calibrating, training a candidate or a control, and the result with its claims.

What the phase hands on is a model directory whose weights are the stored ones, scale times code. Quantising it again
gives the same codes and scales, so nothing is lost whoever loads it; the latent weights of the candidates stay beside
it for a phase that trains on. A parent that thinks goes on thinking in that directory, and in no exported file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from phases import modeldir, rundir, storage
from phases.bitnet.api import BitNetModel, validate_bitnet_performance
from phases.bitnet.archive import to_bytes
from phases.bitnet.calibrate import Statistics, collect, thresholds
from phases.bitnet.config import BitNetConfig, HeldOutConfig
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.packed import PackedModel, pack
from phases.bitnet.performance import Performance, measure_performance
from phases.bitnet.probes import local_file, quality_of
from phases.bitnet.quality import Tokens, bits_per_byte, streams
from phases.bitnet.recipe import Lesson, control, quantise
from phases.bitnet.titan import BitTitan, Thresholds, to_bitnet
from phases.cognate.loading import LoadedModel, load_model, model_config
from phases.cognate.titan import TinyTitan
from phases.contract import Baseline, Claim, ModelRef, PhaseResult, Probe
from phases.corpus.packed import Corpus
from phases.errors import ArtifactError
from phases.probes import RunFiles, claim, measure
from phases.quietstar.carry import carry_thinking
from phases.quietstar.loading import FOLDER as THINKING
from phases.quietstar.loading import can_think
from phases.seeds import child_seed
from phases.training.loop import StepReport
from phases.training.state import TrainState

FOLDER = rundir.phase_folder("bitnet")
MODEL = f"{FOLDER}/model"
ONNX, ARCHIVE, VERDICT, STATISTICS = "model.onnx", "model.bitnet.zst", "validation.json", "calibration.safetensors"
PERFORMANCE = f"{FOLDER}/performance.json"
Kind = Literal["ternary", "control"]


@dataclass(frozen=True)
class Job:
    """One model to train from `parent`, a model directory relative to the run. `factor` is for after a rollback."""

    parent: ModelRef
    kind: Kind
    learning_rate: float
    factor: float = 1.0

    @property
    def name(self) -> str:
        """What it is called among the phase's jobs."""
        return f"{self.kind} {self.learning_rate:g}"

    @property
    def path(self) -> str:
        """Where the trained (latent) weights go, relative to the run."""
        return f"{FOLDER}/{self.kind}/{self.learning_rate:g}"


def jobs(parent: ModelRef, config: BitNetConfig) -> list[Job]:
    """Return what has to be trained; the jobs do not depend on one another."""
    candidates = [Job(parent, "ternary", rate) for rate in config.learning_rates]
    return candidates + [Job(parent, "control", rate) for rate in config.control_learning_rates]


def calibrate(run: str, parent: ModelRef, config: BitNetConfig, seed: int) -> Statistics:
    """Return the statistics of the parent's activations, collected and saved once."""
    path = storage.join(run, FOLDER, STATISTICS)
    if storage.exists(path):
        return Statistics.from_bytes(storage.read_bytes(path))
    loaded, corpus, wanted = _open(run, parent), Corpus.of_run(run), config.calibration
    data_seed, statistics = child_seed(seed, "bitnet", "calibration"), list[Tensor]()
    for step in range(-(-wanted.samples // wanted.batch_size)):
        rows = min(wanted.batch_size, wanted.samples - step * wanted.batch_size)
        batch = corpus.batch(step, batch_size=rows, seq_len=wanted.seq_len, mix={"text": 1.0}, seed=data_seed)
        statistics.append(torch.from_numpy(batch))
    found = collect(loaded.model, statistics)
    storage.write_bytes(path, found.to_bytes())
    return found


def train(
    job: Job,
    run: str,
    config: BitNetConfig,
    seed: int,
    *,
    state: TrainState | None,
    save: Callable[[TrainState], None],
    on_step: Callable[[StepReport], None],
) -> ModelRef:
    """Train a candidate or a control and write its latent weights once.

    Raises `ArtifactError` where the parent is damaged and `NumericalError` where training diverges.
    """
    out = storage.join(run, job.path)
    if modeldir.is_model(out):
        return modeldir.open_ref(out).model_copy(update={"uri": job.path})
    loaded, corpus = _open(run, job.parent), Corpus.of_run(run)
    training, data_seed = config.recipe.training, child_seed(seed, "bitnet", "data")
    rows = training.batch_size * training.accumulate

    def batches(step: int) -> Tensor:
        batch = corpus.batch(step, batch_size=rows, seq_len=training.seq_len, mix={"text": 1.0}, seed=data_seed)
        return torch.from_numpy(batch)

    lesson = Lesson(loaded.model, batches, on_step, save)
    model: TinyTitan
    if job.kind == "control":
        model = control(lesson, config.recipe, job.learning_rate * job.factor)
    else:
        cuts, rate = _thresholds(run, loaded, job.parent, config, seed), job.learning_rate * job.factor
        model = quantise(lesson, config.quantisation, config.recipe, thresholds=cuts, learning_rate=rate, state=state)
    ref = _save(out, dict(model.state_dict()), loaded, job.parent, config, seed)
    return ref.model_copy(update={"uri": job.path})


def finish(files: RunFiles, parent: ModelRef, config: BitNetConfig, seed: int, start: datetime) -> PhaseResult:
    """Choose by validation, export, measure, and return the result. `success` needs a model fit for use.

    Raises `ArtifactError` where a job has left no model.
    """
    run, corpus = files.uri, Corpus.of_run(files.uri)
    rows = streams(corpus, "validation", config.held_out)
    losses = {job: _loss(run, job, config, seed, rows, corpus) for job in jobs(parent, config)}
    best, fair = (min((j for j in losses if j.kind == kind), key=losses.__getitem__) for kind in ("ternary", "control"))
    model, loaded = _student(run, best, config, seed), _open(run, parent)
    packed = pack(model)
    export(packed, storage.join(run, FOLDER), exact=config.exact)
    stored = dict(model.state_dict()) | {name: matrix.dequantise() for name, matrix in model.quantised().items()}
    ref = _save(storage.join(run, MODEL), stored, loaded, parent, config, seed)
    thinking = _carried(files, parent, config, seed)
    verdict = validate_bitnet_performance(BitNetModel(model, loaded.tokenizer), rows)
    storage.write_json(storage.join(run, FOLDER, VERDICT), verdict)
    performance = _performance(files, config)
    claims = _claims(files, fair, packed, config) + _speed_claims(files, performance)
    claims += _thinking_claims(files, parent, config) if thinking else []
    summary = verdict["final_report"]["executive_summary"]
    ready = bool(summary["production_ready"])
    end = datetime.now(start.tzinfo)
    return PhaseResult(
        success=ready,
        phase="bitnet",
        model=ref.model_copy(update={"uri": MODEL}),
        models={"latent": modeldir.open_ref(storage.join(run, best.path)).model_copy(update={"uri": best.path})}
        | thinking,
        metrics=_metrics(claims, packed, losses) | performance.metrics() | {"bitnet/ready_for_training": float(ready)},
        claims=tuple(claims),
        artifacts={name: f"{FOLDER}/{name}" for name in (ONNX, ARCHIVE, VERDICT)},
        degraded=performance.missing,
        notes=(f"{ONNX} and {ARCHIVE} hold the model without its thoughts; {MODEL} thinks.",) if thinking else (),
        config=config.model_dump(mode="json") | {"seed": seed},
        error=None if ready else f"not fit for use: {', '.join(summary['failed'])}",
        start_time=start,
        end_time=end,
        duration_seconds=(end - start).total_seconds(),
    )


def export(packed: PackedModel, uri: str, *, exact: bool = False) -> None:
    """Write the ONNX file and the archive into the folder `uri`."""
    with TemporaryDirectory() as folder:
        write_onnx(packed, Path(folder) / ONNX, exact=exact)
        storage.upload_folder(Path(folder), uri)
    storage.write_bytes(storage.join(uri, ARCHIVE), to_bytes(packed, "archive"))


def _claims(files: RunFiles, fair: Job, packed: PackedModel, config: BitNetConfig) -> list[Claim]:
    file, held_out = f"{FOLDER}/{ONNX}", config.held_out
    arguments = {"model": fair.path, "split": "test", "tokens": held_out.tokens, "streams": held_out.streams}
    control_bits = measure(files, Probe(name="cognate/bits_per_byte", arguments=dict(arguments))).value
    fp32 = Baseline(what="fp32, 10^6 bytes", value=4e-6 * packed.parameters)
    return [
        claim(
            files,
            "bitnet/bits_per_byte",
            quality_of(file, "test", held_out),
            unit="bits per byte of the exported file",
            better="lower",
            tolerance=0.005,
            baseline=Baseline(what="full precision, the same further steps", value=control_bits),
            target=config.most_bits_ratio * control_bits,
        ),
        claim(
            files,
            "bitnet/memory/compressed_size_mb",
            Probe(name="bitnet/megabytes", arguments={"file": file}),
            unit="10^6 bytes",
            better="lower",
            tolerance=0,
            baseline=fp32,
        ),
        claim(
            files,
            "bitnet/memory/compression_ratio",
            Probe(name="bitnet/compression_ratio", arguments={"file": file, "parameters": packed.parameters}),
            unit="x of fp32",
            better="higher",
            tolerance=1e-6,
            baseline=Baseline(what="fp16", value=2.0),
        ),
    ]


def _performance(files: RunFiles, config: BitNetConfig) -> Performance:
    """Measure the exported file against what the phase hands on, in fp32, and keep the samples."""
    file = local_file(files, f"{FOLDER}/{ONNX}")
    found = measure_performance(file, lambda: pack(load_model(files.path(MODEL)).model), force=config.force_timing)
    storage.write_json(files.path(PERFORMANCE), found.model_dump(mode="json"))
    return found


def _speed_claims(files: RunFiles, performance: Performance) -> list[Claim]:
    if performance.turns is None:
        return []
    what = "the same weights in fp32" + (", forced on a busy machine" if performance.turns.forced else "")
    key, probe = "bitnet/speed/inference_speedup", Probe(name="bitnet/speedup", arguments={"file": PERFORMANCE})
    unit, fp32 = "x of fp32, decoding", Baseline(what=what, value=1.0)
    made = claim(files, key, probe, unit=unit, better="higher", tolerance=1e-6, baseline=fp32)
    return [made.model_copy(update={"samples": PERFORMANCE})]


def _thinking_text(config: BitNetConfig) -> HeldOutConfig:
    """Return how much text thoughts are measured on: a quarter, for each token costs several."""
    tokens = max(64, config.held_out.tokens // 4)
    return config.held_out.model_copy(update={"tokens": tokens})


def _carried(files: RunFiles, parent: ModelRef, config: BitNetConfig, seed: int) -> dict[str, ModelRef]:
    """Give the phase's model what its parent thinks with, if that thinks; return the reference of these parts."""
    if not can_think(files.path(parent.uri)):
        return {}
    lineage, corpus = modeldir.Lineage(phase="bitnet", seed=seed), Corpus.of_run(files.uri)
    rows = torch.from_numpy(streams(corpus, "validation", _thinking_text(config)))
    ref = carry_thinking(files.path(parent.uri), files.path(MODEL), rows, corpus.token_bytes, lineage)
    return {"thinking": ref.model_copy(update={"uri": f"{MODEL}/{THINKING}"})}


def _thinking_claims(files: RunFiles, parent: ModelRef, config: BitNetConfig) -> list[Claim]:
    def gain(model: str) -> Probe:
        text = _thinking_text(config)
        arguments = {"model": model, "split": "test", "tokens": text.tokens, "parts": text.streams}
        return Probe(name="bitnet/thinking_gain", arguments=dict(arguments))

    before = Baseline(what="the full-precision parent", value=measure(files, gain(parent.uri)).value)
    unit = "bits per byte saved by thoughts"
    key = "bitnet/thinking_gain"
    return [claim(files, key, gain(MODEL), unit=unit, better="higher", tolerance=0.005, baseline=before)]


def _metrics(claims: list[Claim], packed: PackedModel, losses: dict[Job, float]) -> dict[str, float]:
    """Return the documented output fields and what the sweep found."""
    quality, size, ratio = claims[:3]
    assert quality.baseline is not None
    zeros = packed.zero_shares()
    documented = {
        "original_size_mb": 4e-6 * packed.parameters,
        "compressed_size_mb": size.value,
        "compression_ratio": ratio.value,
        "accuracy_retention": quality.baseline.value / quality.value,
        "memory_reduction": 1 - 1 / ratio.value,
    }
    sweep = {f"validation_bits_per_byte/{job.kind}/{job.learning_rate:g}": loss for job, loss in losses.items()}
    return {f"bitnet/{name}": value for name, value in (documented | sweep).items()} | {
        "bitnet/zero_share": sum(zeros.values()) / len(zeros)
    }


def _loss(run: str, job: Job, config: BitNetConfig, seed: int, rows: Tokens, corpus: Corpus) -> float:
    model = _trained(run, job) if job.kind == "control" else _student(run, job, config, seed)
    return bits_per_byte(model, rows, corpus.token_bytes)


def _trained(run: str, job: Job) -> TinyTitan:
    """Return what a job has left. Raises `ArtifactError` where that is nothing."""
    if not modeldir.is_model(storage.join(run, job.path)):
        raise ArtifactError(f"{storage.join(run, job.path)}: missing; this job has not been run")
    return load_model(storage.join(run, job.path)).model


def _student(run: str, job: Job, config: BitNetConfig, seed: int) -> BitTitan:
    """Return a candidate as it runs."""
    latent = _trained(run, job)
    return to_bitnet(latent, config.quantisation, _thresholds(run, _open(run, job.parent), job.parent, config, seed))


def _thresholds(run: str, loaded: LoadedModel, parent: ModelRef, config: BitNetConfig, seed: int) -> Thresholds | None:
    if not config.quantisation.calibrated:
        return None
    statistics = calibrate(run, parent, config, seed)
    return thresholds(loaded.model, statistics, config.quantisation.layout)


def _open(run: str, ref: ModelRef) -> LoadedModel:
    return load_model(storage.join(run, ref.uri), ref.sha256)


def _save(
    out: str, tensors: dict[str, Tensor], loaded: LoadedModel, parent: ModelRef, config: BitNetConfig, seed: int
) -> ModelRef:
    lineage = modeldir.Lineage(
        phase="bitnet", seed=seed, parents={"parent": parent.sha256}, config=config.model_dump(mode="json")
    )
    return modeldir.save_model(
        out,
        tensors={name: tensor.detach().cpu() for name, tensor in tensors.items()},
        config=model_config(loaded.model.config),
        tokenizer=loaded.tokenizer.to_str(),
        lineage=lineage,
    )
