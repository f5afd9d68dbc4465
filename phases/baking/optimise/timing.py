"""Which of several is faster, as `phases.timing` has measured them in turns by the thread's CPU time.

Sessions run with one thread for this, and do not spin. A ratio has a bootstrap interval over rounds, and one whose
interval holds 1 shows nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phases.timing import bootstrap


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
    low, high = bootstrap(ratios, resamples=resamples)
    return Ratio(float(np.median(ratios)), low, high)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(np.median(values))
