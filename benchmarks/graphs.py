"""Is a graph ever slower for having been optimised here? Ten architectures against the runtime's own four levels.

Full precision only: the search may merge products, bound masks and leave out the runtime's passes that it finds to do
harm. What it chooses is timed afresh, in turns with all four levels, and compared with the fastest of them.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np

from benchmarks.harness import Baseline, Figure, progress
from benchmarks.zoo import ZOO, Write
from phases.baking.optimise.inputs import Inputs
from phases.baking.optimise.search import Outcome, Search, optimise
from phases.baking.optimise.session import Feeds, Level, SessionSettings, call, runs
from phases.baking.optimise.transforms import TRANSFORMS
from phases.timing import Samples, bootstrap, interleaved

_CHOSEN, _LEVELS = "chosen", get_args(Level)
_QUICK = ("BERT", "TinyTitan", "MobileNet")


def figures(quick: bool) -> list[Figure]:
    """Measure `graph_never_slower`, the worst of all, and the figure of each architecture."""
    found = [_figure(name, ZOO[name], 9 if quick else 31) for name in (_QUICK if quick else ZOO)]
    worst = min(found, key=lambda figure: figure.value)
    summary = Figure(
        key="graph_never_slower",
        value=worst.value,
        unit=f"x the best level, the worst of {len(found)}: {worst.key}",
        better="higher",
        goal=0.98,
        baseline=Baseline(what="median of all", value=float(np.median([figure.value for figure in found]))),
        low=worst.low,
        high=worst.high,
        raw={figure.key: [figure.value] for figure in found},
    )
    return [summary, *found]


def _figure(name: str, write: Write, rounds: int) -> Figure:
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        feed = write(model)
        wanted = {name: TRANSFORMS[name] for name in ("merged", "masks")}
        outcome = optimise(model, Path(folder), Inputs([feed], [feed]), Search("latency", 1e-4, rounds, wanted))
        samples = _timed(model, outcome, feed, 2 * rounds)
    best = min(_LEVELS, key=lambda level: float(np.median(samples.get(level, [np.inf]))))
    ratios = np.array(samples[best]) / np.array(samples[_CHOSEN])
    low, high = bootstrap(ratios)
    settings = outcome.chosen.settings
    chosen = f"{outcome.chosen.name} at {settings.level}" + "".join(f", no {harmful}" for harmful in settings.disabled)
    progress(f"{name}: {np.median(ratios):.3f} x {best}; {chosen}")
    return Figure(
        key=f"graph {name}",
        value=float(np.median(ratios)),
        unit=f"x {best}; {chosen}",
        better="higher",
        baseline=Baseline(what=f"{best}, CPU ms", value=1e3 * float(np.median(samples[best]))),
        low=low,
        high=high,
        raw=samples,
    )


def _timed(model: Path, outcome: Outcome, feed: Feeds, rounds: int) -> Samples:
    """Time the levels that run, and what was chosen; the same file with the same settings is one thing."""
    levels = {level: SessionSettings(level=level) for level in _LEVELS}
    calls = {level: call(model, given, feed) for level, given in levels.items() if runs(model, given, feed)}
    chosen = outcome.chosen
    same = [level for level in calls if (chosen.name, chosen.settings) == ("fp32", levels[level])]
    if not same:
        calls[_CHOSEN] = call(Path(chosen.file), chosen.settings, feed)
    samples = interleaved(calls, rounds)
    return samples | {_CHOSEN: samples[same[0]]} if same else samples
