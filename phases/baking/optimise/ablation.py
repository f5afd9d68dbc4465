"""Which of the runtime's own optimisations help this graph on this machine? Each is left out once, and timed.

They are not free of harm: on an AVX-512 machine ONNX Runtime 1.31 runs a MiniLM 13% slower with all of them than with
none, since its fused SkipLayerNormalization misses the vector code that the plain operators have. Leaving that one out
gives int8 another 25%. What is harmful depends on graph, kernel and machine, so it is found here and not listed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from phases.baking.optimise.session import Feeds, Level, SessionSettings, call, node_counts, open_session, runs
from phases.baking.optimise.timing import Ratio, median, speed_ratio
from phases.timing import Samples, interleaved

PASSES = (
    "AttentionFusion", "BiasGeluFusion", "BiasSkipLayerNormFusion", "BiasSoftmaxFusion",
    "CommonSubexpressionElimination",
    "ConvActivationFusion", "ConvAddActivationFusion", "DynamicQuantizeMatMulFusion", "EmbedLayerNormFusion",
    "FastGeluFusion", "GatherSliceToSplitFusion", "GatherToSliceFusion", "GeluFusionL1", "GeluFusionL2",
    "GemmActivationFusion", "GroupQueryAttentionFusion", "LayerNormFusionL1", "LayerNormFusionL2",
    "MatMulActivationFusion", "MatMulAddFusion", "MatMulIntegerToFloatFusion", "MatMulNBitsMlpFusion",
    "MatMulNBitsQkvFusion", "MatMulScaleFusion", "MatmulTransposeFusion", "NchwcTransformer", "QuickGeluFusion",
    "ReshapeFusion", "SimplifiedLayerNormFusion", "SkipLayerNormFusion", "TransposeOptimizer",
)  # fmt: skip
_LEVELS: tuple[Level, ...] = ("off", "basic", "extended", "all")


@dataclass(frozen=True)
class Ablation:
    """What was found. `gains` are of leaving a pass out: above 1 it is harmful."""

    gains: dict[str, Ratio]
    settings: SessionSettings  # the fastest
    seconds: dict[str, float]  # median by name of the setting: the levels that run, and `ablated`
    samples: Samples
    broken: tuple[str, ...] = ()  # passes with which the file does not run at all

    @property
    def harmful(self) -> tuple[str, ...]:
        """The passes that break the file, or that the whole interval speaks against."""
        return tuple(sorted({name for name, gain in self.gains.items() if gain.faster} | set(self.broken)))

    @property
    def fastest(self) -> str:
        """The name of the fastest setting."""
        return min(self.seconds, key=self.seconds.__getitem__)


def ablate(path: Path, feeds: Feeds, rounds: int, on_step: Callable[[str], None] = lambda name: None) -> Ablation:
    """Time the levels of optimisation, and the highest without each pass that changes the graph, then without all
    that are harmful.

    Raises `ArtifactError` where the file does not run even without any optimisation.
    """
    passes = effective_passes(path, on_step)
    broken = _breaking(path, feeds, passes)
    everything = SessionSettings(disabled=broken)
    tried = {"all": everything} | {
        name: everything.model_copy(update={"disabled": tuple(sorted({name, *broken}))})
        for name in passes
        if name not in broken
    }
    seconds = _timed(path, feeds, tried, rounds, on_step)
    gains = {name: speed_ratio(seconds["all"], seconds[name]) for name in tried if name != "all"}
    harmful = tuple(sorted({name for name, gain in gains.items() if gain.faster} | set(broken)))
    levels = {level: SessionSettings(level=level) for level in _LEVELS}
    final: dict[str, SessionSettings] = {
        n: given for n, given in levels.items() if not broken or runs(path, given, feeds)
    }
    if harmful:
        final["ablated"] = everything.model_copy(update={"disabled": harmful})
    samples = _timed(path, feeds, final, rounds, on_step)
    medians = {name: median(series) for name, series in samples.items()}
    return Ablation(gains, final[min(medians, key=medians.__getitem__)], medians, samples, broken)


def _breaking(path: Path, feeds: Feeds, passes: list[str]) -> tuple[str, ...]:
    """Return the passes without which a file runs that does not run with all; most often none."""
    if runs(path, SessionSettings(), feeds):
        return ()
    open_session(path, SessionSettings(level="off")).run(None, feeds)
    for name in passes:
        if runs(path, SessionSettings(disabled=(name,)), feeds):
            return (name,)
    return tuple(passes)


def effective_passes(path: Path, on_step: Callable[[str], None] = lambda name: None) -> list[str]:
    """Return the passes without which the optimised graph has other nodes."""
    with TemporaryDirectory() as folder:
        dumped = Path(folder) / "optimised.onnx"

        def nodes(*disabled: str) -> dict[str, int]:
            open_session(path, SessionSettings(disabled=disabled), dumped)
            return node_counts(dumped)

        whole, found = nodes(), list[str]()
        for name in PASSES:
            on_step(f"does {name} change the graph?")
            if nodes(name) != whole:
                found.append(name)
    return found


def _timed(
    path: Path, feeds: Feeds, tried: dict[str, SessionSettings], rounds: int, on_step: Callable[[str], None]
) -> Samples:
    on_step(f"timing {len(tried)} settings")
    return interleaved({name: call(path, settings, feeds) for name, settings in tried.items()}, rounds)
