"""Counts over sliding windows, what may be claimed of them, trends of a quantity, and alarms that are raised once.

Availability is said with its sample size, and no more of it than the sample proves: "99.9 %" needs 2,996 clean calls
(the rule of three). A trend counts only where Mann-Kendall's test finds one. An alarm must get clearly better before it
can be raised again. Everything is fed from outside with its time in seconds; memory is bounded whatever comes.
"""

from collections import Counter, deque
from dataclasses import dataclass
from math import comb, floor, inf, sqrt

import numpy as np
from scipy.special import gammaincinv

CONFIDENCE = 0.95
_Z = 1.959964  # two-sided 95 % of the normal distribution
_LEAST_POINTS = 8


class Tally:
    """Counts by name over the last `seconds`, in slots, so that memory does not grow with what is counted."""

    def __init__(self, seconds: float, slots: int = 60) -> None:
        self.slots, self._width = slots, seconds / slots
        self._counts = deque[tuple[int, Counter[str]]]()

    def add(self, time: float, name: str) -> None:
        """Count one; times come in order, those a little late count as the latest."""
        slot = int(time / self._width)
        if not self._counts or self._counts[-1][0] < slot:
            self._counts.append((slot, Counter()))
        self._counts[-1][1][name] += 1
        self._drop(slot)

    def counts(self, now: float) -> Counter[str]:
        """Return the counts of the window that ends now."""
        self._drop(int(now / self._width))
        return sum((counts for _, counts in self._counts), Counter())

    def newer_half(self, now: float) -> Counter[str]:
        """Return the counts of the second half of the window."""
        since = int(now / self._width) - self.slots // 2
        return sum((counts for slot, counts in self._counts if slot > since), Counter())

    def _drop(self, slot: int) -> None:
        while self._counts and self._counts[0][0] <= slot - self.slots:
            self._counts.popleft()


@dataclass(frozen=True)
class Availability:
    """Of `calls` calls, `failed` were not answered."""

    calls: int
    failed: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share that is answered (Wilson 1927); (0, 1) without calls."""
        if not self.calls:
            return 0.0, 1.0
        share, z2 = 1 - self.failed / self.calls, _Z * _Z
        middle = share + z2 / (2 * self.calls)
        spread = _Z * sqrt(share * (1 - share) / self.calls + z2 / (4 * self.calls**2))
        scale = 1 + z2 / self.calls
        return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)

    @property
    def claim(self) -> float:
        """The share that may be claimed at 95 %: the exact Poisson bound, 1 - 3.0 / calls where none failed."""
        if not self.calls:
            return 0.0
        return max(0.0, 1 - float(gammaincinv(self.failed + 1, CONFIDENCE)) / self.calls)

    @property
    def text(self) -> str:
        """What may be said, rounded down."""
        if not self.calls:
            return "no calls yet, nothing can be claimed"
        clean = f"{self.calls - self.failed:,} of {self.calls:,} calls answered"
        return f"at least {floor(self.claim * 1000) / 10:.1f} % (95 % confidence; {clean})"


class Series:
    """The points of one quantity over the last `seconds`, at most `limit` of them."""

    def __init__(self, seconds: float, limit: int = 128) -> None:
        self.seconds = seconds
        self._apart = seconds / limit
        self._points = deque[tuple[float, float]]()

    def add(self, time: float, value: float) -> None:
        """Add a point; it replaces the last one where that is nearer to the one before than there is room for.

        One that is not later than the last is left out: somebody has set the clock.
        """
        if self._points and time <= self._points[-1][0]:
            return
        if len(self._points) > 1 and time - self._points[-2][0] < self._apart:
            self._points.pop()
        self._points.append((time, value))
        while self._points[0][0] < time - self.seconds:
            self._points.popleft()

    @property
    def last(self) -> float:
        """The newest value."""
        return self._points[-1][1]

    def seconds_left(self) -> float:
        """Return in how long the value is 0 if it goes on so: Theil-Sen slope, where Mann-Kendall finds a fall.

        The older and the newer half have to agree, since what starts up takes much and then no more. Infinite where it
        does not fall, or where points are too few or too close together to tell.
        """
        points = np.array(self._points)  # (N, 2)
        if len(points) < 2 * _LEAST_POINTS or points[-1, 0] - points[0, 0] < self.seconds / 4:
            return inf
        halves = np.array_split(points, 2)
        slope = max(_fall(half) for half in halves)
        return max(float(np.median(points[-_LEAST_POINTS:, 1])), 0.0) / -slope if slope < 0 else inf

    def speeds(self, now: float) -> tuple[float, float] | None:
        """Return what a growing counter gained per second before the newest quarter and in it; None where too few."""
        since = now - self.seconds / 4
        before = [point for point in self._points if point[0] <= since]
        if len(before) < _LEAST_POINTS or before[-1][0] - before[0][0] < self.seconds / 4:
            return None
        earlier = (before[-1][1] - before[0][1]) / (before[-1][0] - before[0][0])
        return earlier, (self.last - before[-1][1]) / (now - before[-1][0])


def _fall(points: np.ndarray) -> float:
    """Return the Theil-Sen slope of `points` (N, 2), (time, value), where Mann-Kendall's test finds a fall, else 0."""
    times, values = points.T
    n = len(times)
    later, earlier = np.tril_indices(n, -1)
    rises = values[later] - values[earlier]  # (N (N - 1) / 2,)
    slope = float(np.median(rises / (times[later] - times[earlier])))
    z = float(np.sign(rises).sum()) / sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return slope if z <= -3 else 0.0


@dataclass(frozen=True)
class Alert:
    """Something that a person should know. `key` names the condition."""

    key: str
    text: str
    time: float
    level: str = "warning"


class Alarms:
    """Conditions that are told once: one that is bad stays so until it is good, which is more than not bad."""

    def __init__(self) -> None:
        self.active: dict[str, Alert] = {}
        self._fresh = list[Alert]()

    def judge(self, key: str, time: float, text: str, *, bad: bool, good: bool) -> None:
        """Raise the alarm where it is new, end it where all is good."""
        if bad and key not in self.active:
            self.active[key] = alert = Alert(key, text, time)
            self._fresh.append(alert)
        elif good:
            self.active.pop(key, None)

    def keep(self, kinds: tuple[str, ...], keys: set[str]) -> None:
        """End the alarms of some kinds (the first word of a key) about what is no longer there."""
        for key in [key for key in self.active if key.partition(" ")[0] in kinds and key not in keys]:
            del self.active[key]

    def take(self) -> list[Alert]:
        """Return the alarms raised since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh


def upper_tail(trials: int, successes: int, chance: float) -> float:
    """Return the probability of at least so many successes, binomial."""
    return sum(comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(successes, trials + 1))
