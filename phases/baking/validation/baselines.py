"""T4: a gain over something that nobody would use. The denominator is the fastest alternative of the same run."""

from collections.abc import Iterator
from statistics import median

from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import Statement

_MARGIN = 0.02
_SAME = ("batch", "batch_size", "seq_len", "sequence", "threads", "device", "input", "inputs", "new_tokens", "samples")


def check(statement: Statement) -> Iterator[Finding]:
    """Find slower baselines than the run had, unequal conditions, unequal statistics, and ratios to nothing."""
    yield from _slower_than_known(statement)
    yield from _unequal_conditions(statement)
    if len(set(statement.statistic.values())) > 1:
        how = ", ".join(f"{name}: {kind}" for name, kind in statement.statistic.items())
        yield _finding(statement, f"candidate and baseline are summarised differently ({how})")
    compared = statement.baseline is not None or statement.before is not None or len(statement.series) > 1
    if statement.is_ratio and not compared and statement.probe is None and "before" not in statement.files:
        yield _finding(statement, "a ratio without what it is a ratio to", claimed=statement.value)


def alternatives(statement: Statement) -> dict[str, float]:
    """Return the seconds of each baseline that was measured, from the samples where these are given."""
    found = dict(statement.alternatives)
    for name in found:
        if series := statement.series.get(name):
            found[name] = median(series)
    if isinstance(statement.baseline, str) and (series := statement.series.get(statement.baseline)):
        found.setdefault(statement.baseline, median(series))
    return found


def _slower_than_known(statement: Statement) -> Iterator[Finding]:
    known = alternatives(statement)
    used = baseline_seconds(statement, known)
    if not known or used is None or not (statement.is_ratio or statement.is_timing):
        return
    fastest = min(known, key=lambda name: known[name])
    if known[fastest] < used * (1 - _MARGIN):
        measured = statement.value * known[fastest] / used if statement.is_ratio else known[fastest]
        why = f"against a baseline of {used:g}; {fastest}, measured in the same run, takes {known[fastest]:g}"
        yield _finding(statement, why, statement.value, measured)


def baseline_seconds(statement: Statement, known: dict[str, float]) -> float | None:
    """Return the time of the baseline that a statement used, None where it names none."""
    match statement.baseline:
        case str(name):
            return known.get(name)
        case {"what": str(name)} if name in known:
            return known[name]
        case {"value": int() | float() as value}:
            return float(value)
    return statement.before


def _unequal_conditions(statement: Statement) -> Iterator[Finding]:
    for name in _SAME:
        values = {who: given[name] for who, given in statement.conditions.items() if name in given}
        if len({repr(value) for value in values.values()}) > 1:
            how = ", ".join(f"{who}: {value}" for who, value in values.items())
            yield _finding(statement, f"candidate and baseline differ in {name} ({how})")


def _finding(statement: Statement, why: str, claimed: float | None = None, measured: float | None = None) -> Finding:
    return Finding(test="T4", path=statement.source, where=statement.key, claimed=claimed, measured=measured, why=why)
