"""T11: availability and how many runs it takes to say it.

After n runs without a failure the true rate of failures may, at 95% confidence, still be as high as -ln(0.05)/n, about
3/n (rule of three): "99.9%" takes 2,996 clean runs. With k failures the bound is the one-sided one of a Poisson count,
chi2(0.95, 2k + 2) / 2n, of which the rule of three is the case k = 0 (Garwood 1936).
"""

import math
from collections.abc import Iterator

from scipy.special import gammaincinv

from phases.baking.validation import words
from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import Statement

_CONFIDENCE = 0.95


def lower_bound(runs: int, failures: int) -> float:
    """Return the rate of success that `runs` with `failures` show at 95% confidence, one-sided."""
    return max(0.0, 1 - float(gammaincinv(failures + 1, _CONFIDENCE)) / max(runs, 1))


def runs_needed(rate: float) -> int:
    """Return the clean runs that it takes to claim a `rate` of success below 1; 2,996 for 99.9%."""
    return math.ceil(-math.log(1 - _CONFIDENCE) / (1 - rate))


def check(statement: Statement) -> Iterator[Finding]:
    """Find availability claimed from fewer runs than show it. A stated interval that is right makes it honest."""
    if not words.AVAILABILITY & set(words.parts(words.last_part(statement.key))) or words.is_timing(statement.key):
        return
    percent = statement.unit.strip() == "%" or "percent" in words.parts(statement.key) or statement.value > 1
    scale = 100.0 if percent else 1.0
    claimed = statement.value / scale
    if statement.n is None:
        if statement.probe is None:
            yield _finding(statement, claimed, None, "availability without the number of runs behind it")
        return
    failures = statement.failures or 0
    bound = lower_bound(statement.n, failures)
    if statement.failures is not None and claimed > 1 - failures / statement.n + 1e-9:
        why = f"{failures} failures in {statement.n} runs are fewer successes than that"
        yield _finding(statement, claimed, 1 - failures / statement.n, why)
    elif statement.low is not None:
        if statement.low / scale > bound + 1e-3:
            yield _finding(
                statement, statement.low / scale, bound, f"the interval is too narrow for {statement.n} runs"
            )
    elif claimed > bound + 1e-9:
        needed = f"; it takes {runs_needed(claimed)} clean runs" if claimed < 1 else "; no number of runs shows 100%"
        why = f"{statement.n} runs with {failures} failures show only {bound:.5f}{needed}"
        yield _finding(statement, claimed, bound, why)


def _finding(statement: Statement, claimed: float, measured: float | None, why: str) -> Finding:
    return Finding(test="T11", path=statement.source, where=statement.key, claimed=claimed, measured=measured, why=why)
