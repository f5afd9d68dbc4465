"""Which of several is faster, on a machine that does other things, too.

Candidates take turns, each round in the reverse order of the one before, and the clock is the thread's own CPU time: at
a load of 8 that gave the ratios of a quiet machine, where wall time drifted fivefold. Sessions run with one thread for
this, and do not spin. A ratio has a bootstrap interval over rounds, and one whose interval holds 1 shows nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Samples = dict[str, list[float]]


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> Samples:
    """Return name -> CPU seconds of each round. Every call runs once a round."""
    seconds: Samples = {name: [] for name in calls}
    for number in range(-warmup, rounds):
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            start = time.thread_time()
            calls[name]()
            spent = time.thread_time() - start
            if number >= 0:
                seconds[name].append(spent)
    return seconds


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one is as another: median of the rounds' ratios, and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether the whole interval says so."""
        return self.low > 1


def speed_ratio(slow: Sequence[float], fast: Sequence[float], resamples: int = 1000) -> Ratio:
    """Return the speed of `fast` over that of `slow`, paired by round."""
    ratios = np.asarray(slow) / np.asarray(fast)
    draws = np.random.default_rng(0).integers(0, len(ratios), (resamples, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(np.median(values))
