"""T7: metrics that do not measure. From stored samples, and by calling the metric itself.

A quality that is the same to the last digit over different seeds was not computed from them; only the ends of its
range (all right, all wrong) are reached by honest work. A metric that can be called must react to its input, and must
not react to the seed alone.
"""

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import TypeVar

from phases.baking.validation import words
from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import Statement

T = TypeVar("T")


def check(statement: Statement) -> Iterator[Finding]:
    """Find qualities that are constant over seeds, or that are not the mean of their samples."""
    if not words.is_fraction(statement.key):
        return
    for name, series in statement.series.items():
        if len(series) >= 3 and len(set(series)) == 1 and series[0] not in (0.0, 1.0, 100.0):
            why = f"the same to the last digit over {len(series)} samples of {name}"
            yield _finding(statement.source, statement.key, why, statement.value, series[0])
    series = statement.series.get("value") or statement.series.get("seeds") or []
    if len(series) >= 2 and not min(series) - 1e-9 <= statement.value <= max(series) + 1e-9:
        why = "outside the range of the samples that it summarises"
        yield _finding(statement.source, statement.key, why, statement.value, fmean(series))


def check_metric(name: str, metric: Callable[[T, int], float], good: T, bad: T, seed: int = 0) -> list[Finding]:
    """Call `metric(input, seed)` on an input that it should like, one that it should not, and with another seed."""
    first, again, other = metric(good, seed), metric(good, seed + 1), metric(bad, seed)
    found = []
    if first != again:
        found.append(_finding(name, "metric", "another seed gives another number for the same input", first, again))
    if first == other or again == other:
        why = "a good input and a bad one give the same number"
        found.append(_finding(name, "metric", why, first, other))
    return found


def _finding(path: str, where: str, why: str, claimed: float, measured: float) -> Finding:
    return Finding(test="T7", path=path, where=where, claimed=claimed, measured=measured, why=why)
