"""Timing several calls against each other on a machine that does other things, too.

They take turns, each round in the reverse order of the one before, so that drift and the state of caches favour nobody,
and the clock counts CPU time: at a load of 8 that gave the ratios of a quiet machine, where wall time drifted fivefold.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Samples = dict[str, list[float]]


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    *,
    clock: Callable[[], float] = time.thread_time,
    on_round: Callable[[int, Samples], None] = lambda number, seconds: None,
) -> Samples:
    """Return name -> seconds of each round. Every call runs once a round, `warmup` rounds go before those counted."""
    seconds: Samples = {name: [] for name in calls}
    for number in range(-warmup, rounds):
        spent = in_turn(calls, number, clock)
        if number >= 0:
            for name, series in seconds.items():
                series.append(spent[name])
            on_round(number, seconds)
    return seconds


def in_turn(
    calls: Mapping[str, Callable[[], object]], number: int, clock: Callable[[], float] = time.thread_time
) -> dict[str, float]:
    """Return name -> seconds of one round, which runs forwards where its number is even."""
    spent = dict[str, float]()
    for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
        start = clock()
        calls[name]()
        spent[name] = clock() - start
    return spent


def bootstrap(
    values: Sequence[float], statistic: Callable[..., np.ndarray] = np.median, resamples: int = 2000
) -> tuple[float, float]:
    """Return the 95% percentile interval of `statistic(array, axis=1)` over `values`, from a fixed seed."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(0, len(array), (resamples, len(array)))
    low, high = np.quantile(statistic(array[draws], axis=1), [0.025, 0.975])
    return float(low), float(high)
