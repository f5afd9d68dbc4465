"""Sets of whole numbers that come mostly in order: a sorted list of half-open ranges, so that order costs no memory."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise


class Intervals:
    """A set that grows by ranges. Ranges that touch are one."""

    def __init__(self, pairs: Iterable[Sequence[int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in pairs:
            self.add(start, stop)

    @classmethod
    def of(cls, numbers: Iterable[int]) -> "Intervals":
        """Return the set of some numbers, each once, in any order."""
        ordered = sorted(numbers)
        jumps = [place for place, (number, after) in enumerate(pairwise(ordered), 1) if after != number + 1]
        bounds = pairwise([0, *jumps, len(ordered)]) if ordered else ()
        return cls((ordered[start], ordered[stop - 1] + 1) for start, stop in bounds)

    def add(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Add [start, stop) and return the ranges of it that were not there before."""
        if start >= stop:
            return []
        first, last = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        fresh, place = list[tuple[int, int]](), start
        for known_start, known_stop in zip(self._starts[first:last], self._stops[first:last], strict=True):
            if place < known_start:
                fresh.append((place, known_start))
            place = max(place, known_stop)
        if place < stop:
            fresh.append((place, stop))
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last], self._stops[first:last] = [start], [stop]
        return fresh

    def covers(self, start: int, stop: int) -> bool:
        """Say whether all of [start, stop) is in the set."""
        place = bisect_right(self._starts, start) - 1
        return start >= stop or (place >= 0 and stop <= self._stops[place])

    def __contains__(self, number: int) -> bool:
        return self.covers(number, number + 1)

    def __len__(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def pairs(self) -> list[list[int]]:
        """Return the ranges in order, as JSON and msgpack can hold them."""
        return [list(pair) for pair in zip(self._starts, self._stops, strict=True)]
