"""The k largest of a tensor, exactly, without sorting it.

A strided sample brackets the k-th largest value; one pass counts what lies above the bracket and collects the percent
or so that lies within, and only that is partitioned. Where the bracket misses (values in an order that the sample does
not see) everything is partitioned. Of equal values the first in the tensor are taken, so that exactly k are.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phases.evomerge.methods.arrays import Flat
from phases.evomerge.methods.kernels import BLOCK, compiled

_DIRECT = 32_768  # tensors of fewer elements are partitioned whole
_ERRORS = 2.5  # half the width of the bracket, in standard errors of a sample's quantile


class Cut(NamedTuple):
    """The k largest values: those above `value`, and those equal to it at indices below `position`."""

    value: float
    position: int


EVERYTHING, NOTHING = Cut(-1.0, 0), Cut(math.inf, 0)


def top(values: Flat, origin: Flat | None, k: int) -> Cut:
    """Return the cut that keeps the `k` largest of `abs(values - origin)` (of `abs(values)` without an origin)."""
    elements = len(values)
    if k >= elements:
        return EVERYTHING
    if k <= 0:
        return NOTHING
    origin = values[:0] if origin is None else origin
    above, candidates = _candidates(values, origin, k)
    at = len(candidates) - (k - above)
    value = np.partition(candidates, at)[at]
    quota = k - above - int(np.count_nonzero(candidates > value))
    if quota == np.count_nonzero(candidates == value):
        return Cut(float(value), elements)
    return Cut(float(value), int(_position(values, origin, value, quota)))


def segments(cuts: Sequence[Cut], like: Flat) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Yield (start, stop, the least value that each cut takes there), of the type of `like`.

    A cut takes values equal to its own only before its position; where there are none to choose from, one segment does.
    """
    edges = [0, *sorted({cut.position for cut in cuts if 0 < cut.position < len(like)}), len(like)]
    infinity = like.dtype.type(math.inf)
    for start, stop in pairwise(edges):
        values = [like.dtype.type(cut.value) for cut in cuts]
        least = [
            value if start < cut.position else np.nextafter(value, infinity)
            for value, cut in zip(values, cuts, strict=True)
        ]
        yield start, stop, tuple(least)


def _candidates(values: Flat, origin: Flat, k: int) -> tuple[int, Flat]:
    """Return how many values lie above all candidates, and candidates that the k-th largest is one of."""
    found = np.empty(len(values) + 1, values.dtype)  # one more, since a candidate is written before it is judged
    if len(values) >= _DIRECT:
        low, high = _bracket(values, origin, k)
        above, count = _collect(values, origin, low, high, found)
        if above < k <= above + count:
            return int(above), found[:count]
    _magnitudes(values, origin, 0, found[:-1])
    return 0, found[:-1]


def _bracket(values: Flat, origin: Flat, k: int) -> tuple[Any, Any]:
    """Return two values that the k-th largest lies between, by a sample of n^(2/3)."""
    step = round(len(values) ** (1 / 3)) | 1  # odd, so that it meets all columns of a matrix
    sample = np.abs(values[::step] - origin[::step]) if len(origin) else np.abs(values[::step])
    share = 1 - k / len(values)
    error = _ERRORS * math.sqrt(share * (1 - share) / len(sample)) + 1 / len(sample)
    low, high = int((share - error) * len(sample)), math.ceil((share + error) * len(sample))
    sample.partition(sorted({max(low, 0), min(high, len(sample) - 1)}))
    infinity = values.dtype.type(math.inf)
    return sample[max(low, 0)] * (low >= 0), sample[high] if high < len(sample) else infinity


@compiled()
def _magnitudes(values: Flat, origin: Flat, start: int, out: Flat) -> None:
    """Write the magnitudes from index `start` on to `out`."""
    block = values[start : start + len(out)]
    if len(origin) == 0:
        for j in range(len(out)):
            out[j] = abs(block[j])
    else:
        zero = origin[start : start + len(out)]
        for j in range(len(out)):
            out[j] = abs(block[j] - zero[j])


@compiled()
def _classify(block: Flat, low: Any, high: Any, inside: NDArray[np.uint8]) -> Any:
    """Mark the magnitudes from `low` to `high` in `inside`; return how many lie above."""
    above = np.int32(0)
    for j in range(len(block)):
        above = np.int32(above + np.int32(block[j] > high))
        inside[j] = np.uint8((block[j] >= low) & (block[j] <= high))
    return above


@compiled()
def _collect(values: Flat, origin: Flat, low: Any, high: Any, found: Flat) -> tuple[int, int]:
    """Count the magnitudes above `high`, and write those from `low` to `high`, both at least 0, to `found`."""
    above, count = 0, 0
    block, inside = np.empty(BLOCK, values.dtype), np.empty(BLOCK, np.uint8)
    eights = inside.view(np.uint64)  # most groups of eight have none inside
    for start in range(0, len(values), BLOCK):
        size = min(BLOCK, len(values) - start)
        block[size:] = -1
        _magnitudes(values, origin, start, block[:size])
        above += _classify(block, low, high, inside)
        for group in range(BLOCK // 8):
            if eights[group]:
                for j in range(8 * group, 8 * group + 8):
                    found[count] = block[j]
                    count += inside[j]
    return int(above), count


@compiled()
def _position(values: Flat, origin: Flat, value: Any, quota: int) -> int:
    """Return the index behind the `quota`-th magnitude that equals `value`."""
    for j in range(len(values)):
        magnitude = abs(values[j] - origin[j]) if len(origin) else abs(values[j])
        if magnitude == value:
            quota -= 1
            if quota == 0:
                return j + 1
    return len(values)
