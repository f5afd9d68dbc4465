"""T5 on reports: a measured time has samples, they vary, they give the claimed number, and the load is known."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean, median

import numpy as np

from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import Statement

_TOLERANCE = 0.05
_CPU_CLOCKS = ("thread", "process", "cpu", "cycles")


def check(statement: Statement) -> Iterator[Finding]:
    """Compute a time or speed-up again from its samples."""
    if not statement.is_timing and not (statement.is_ratio and len(statement.series) == 2):
        return
    checks = (_samples, _recomputed, _interval, _load, _percentiles)
    for part in checks:
        for why, claimed, measured in part(statement):
            yield Finding(
                test="T5", path=statement.source, where=statement.key, claimed=claimed, measured=measured, why=why
            )


_Problem = tuple[str, float | None, float | None]


def _samples(statement: Statement) -> Iterator[_Problem]:
    if not statement.samples and statement.probe is None:
        yield "a time without the samples that it summarises", statement.value, None
    for name, series in statement.series.items():
        if len(series) >= 3 and len(set(series)) == 1:
            yield f"all {len(series)} samples of {name} are the same: not measured", None, series[0]
        elif len(series) >= 5 and np.ptp(np.diff(series)) <= 1e-9 * max(map(abs, series)):
            yield f"the samples of {name} are evenly spaced: made by a formula", None, series[1] - series[0]
        if statement.n is not None and len(series) < statement.n:
            yield f"fewer samples of {name} than repetitions claimed", float(statement.n), float(len(series))


def _pair(statement: Statement) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return the samples of candidate and baseline, None where it is not plain which is which."""
    series, named = statement.series, statement.baseline
    if isinstance(named, dict):
        named = named.get("what")
    others = [name for name in series if name != named and name not in statement.alternatives]
    candidate = statement.candidate or (others[0] if len(others) == 1 else None)
    if named not in series or candidate not in series:
        return None
    return series[candidate], series[named]


def _ratios(fast: Sequence[float], slow: Sequence[float]) -> list[float]:
    """Return the ratios that an honest report may give: of medians, of means, and the median of paired ratios."""
    found = [median(slow) / median(fast), fmean(slow) / fmean(fast)]
    if len(fast) == len(slow):
        found.append(median(b / a for a, b in zip(fast, slow, strict=True)))
    return found


def _recomputed(statement: Statement) -> Iterator[_Problem]:
    pair = _pair(statement)
    if statement.is_ratio and pair is not None:
        found = _ratios(*pair)
    elif not statement.is_ratio and list(statement.series) == ["value"] and statement.series["value"]:
        values = statement.series["value"]
        found = [median(values), fmean(values), *np.percentile(values, [90, 95, 99]).tolist()]
    else:
        return
    if all(abs(statement.value - value) > _TOLERANCE * abs(value) for value in found):
        yield "the samples give another number", statement.value, found[0]


def _interval(statement: Statement) -> Iterator[_Problem]:
    pair = _pair(statement)
    if not statement.is_ratio or pair is None or statement.value <= 1 or min(map(len, pair)) < 3:
        return
    fast, slow = (np.asarray(series) for series in pair)
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(series), (2000, len(series))) for series in (fast, slow)]
    ratios = np.median(slow[draws[1]], axis=1) / np.median(fast[draws[0]], axis=1)
    low = float(np.quantile(ratios, 0.025))
    if low <= 1 and (statement.low is None or statement.low > 1):
        yield "the 95% interval of the ratio contains 1, and the report does not say so", statement.value, low


def _load(statement: Statement) -> Iterator[_Problem]:
    if statement.probe is not None or not statement.samples:
        return
    clock = (statement.clock or "").lower()
    if any(word in clock for word in _CPU_CLOCKS):
        return
    load = statement.load if statement.load is not None else statement.host.get("load")
    if load is None:
        yield "a time without the machine's load when it was measured", None, None
    elif clock.startswith("wall") and load > float(statement.host.get("cores", 1)) * 1.5:
        yield "wall-clock time on an overloaded machine", None, float(load)


def _percentiles(statement: Statement) -> Iterator[_Problem]:
    ordered = sorted((float(name.lstrip("pP")), value) for name, value in statement.percentiles.items())
    for (_, lower), (_, upper) in pairwise(ordered):
        if upper < lower:
            yield "a higher percentile is smaller than a lower one", upper, lower
