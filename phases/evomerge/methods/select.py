"""The k largest magnitudes of tensors, exactly, without sorting them.

A strided sample brackets the k-th largest value; one pass counts what lies above the bracket and collects the few
percent that lie within, and only those are partitioned. Where the bracket misses (values in an order that the sample
does not see) everything is partitioned. Of equal values the first in the tensor are taken, so that exactly k are.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from phases.evomerge.methods.arrays import Flat
from phases.evomerge.methods.kernels import BLOCK, compiled

_DIRECT = 32_768  # tensors of fewer elements are partitioned whole
_GROUP = 8  # elements that are looked at together: most groups have none within a bracket
_ROOM = 8  # the part of a tensor that may be collected: more than a bracket holds, unless many values are equal
_ERRORS = 2.5  # half the width of the bracket, in standard errors of a sample's quantile


class Cut(NamedTuple):
    """The k largest values: those above `value`, and those equal to it at indices below `position`.

    An infinite value takes all that are infinite, so that they reach the result and are found.
    """

    value: float
    position: int

    def behind(self, start: int) -> Self:
        """Return the cut as a part of the tensor that begins at `start` sees it."""
        return self._replace(position=self.position - start)


EVERYTHING, NOTHING = Cut(-1.0, 0), Cut(math.inf, 0)


def top(tensors: Sequence[Flat], origin: Flat | None, keeps: Sequence[int]) -> list[Cut]:
    """Return for each tensor the cut that takes the `keep` largest of `abs(tensor - origin)`; no origin: of `abs`."""
    elements = len(tensors[0])
    cuts = [EVERYTHING if keep >= elements else NOTHING for keep in keeps]
    inner = [i for i, keep in enumerate(keeps) if 0 < keep < elements]
    if not inner:
        return cuts
    chosen, wanted = tuple(tensors[i] for i in inner), [keeps[i] for i in inner]
    start = chosen[0][:0] if origin is None else origin
    for i, tensor, keep, (above, found) in zip(inner, chosen, wanted, _candidates(chosen, start, wanted), strict=True):
        cuts[i] = _cut(tensor, start, keep, above, found)
    return cuts


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


def _cut(tensor: Flat, origin: Flat, keep: int, above: int, candidates: Flat) -> Cut:
    """Return the cut at the `keep`-th largest value, which is a candidate; `above` lie above all candidates."""
    at = len(candidates) - (keep - above)
    candidates.partition(at)
    value = candidates[at]
    quota = keep - above - int(np.count_nonzero(candidates[at + 1 :] > value))
    if quota == np.count_nonzero(candidates == value):
        return Cut(float(value), len(tensor))
    return Cut(float(value), _position(tensor, origin, value, quota))


def _candidates(tensors: tuple[Flat, ...], origin: Flat, keeps: Sequence[int]) -> Iterator[tuple[int, Flat]]:
    """Yield for each tensor how many values lie above all candidates, and candidates, the k-th largest among them."""
    elements = len(tensors[0])
    if elements < _DIRECT:
        yield from ((0, _all(tensor, origin)) for tensor in tensors)
        return
    step = round(elements ** (1 / 3)) | 1  # a sample of n^(2/3); odd, so that it meets all columns of a matrix
    start = origin[::step].copy()
    brackets = [
        _bracket(_all(tensor[::step], start), 1 - keep / elements) for tensor, keep in zip(tensors, keeps, strict=True)
    ]
    lows, highs = (tuple(ends) for ends in zip(*brackets, strict=True))
    found = np.empty((len(tensors), elements // _ROOM), origin.dtype)
    counts = np.zeros((len(tensors), 2), np.int64)
    _collect(tensors, origin, lows, highs, found, counts)
    for tensor, keep, row, (above, count) in zip(tensors, keeps, found, counts.tolist(), strict=True):
        complete = count <= len(row) - _GROUP  # else there may have been more than there was room for
        yield (above, row[:count]) if complete and above < keep <= above + count else (0, _all(tensor, origin))


def _all(tensor: Flat, origin: Flat) -> Flat:
    return np.abs(tensor - origin) if len(origin) else np.abs(tensor)


def _bracket(sample: Flat, share: float) -> tuple[Any, Any]:
    """Return two values that the value with a `share` of all magnitudes below it lies between, judging by a sample."""
    error = _ERRORS * math.sqrt(share * (1 - share) / len(sample)) + 1 / len(sample)
    low, high = int((share - error) * len(sample)), math.ceil((share + error) * len(sample))
    sample.sort()
    zero, infinity = sample.dtype.type(0), sample.dtype.type(math.inf)
    return sample[low] if low > 0 else zero, sample[high] if high < len(sample) else infinity


@compiled()
def _magnitudes(block: Flat, origin: Flat, out: Flat) -> None:
    """Write the magnitudes of a block to `out`; an empty origin is zero."""
    if len(origin) == 0:
        for j in range(len(out)):
            out[j] = abs(block[j])
    else:
        for j in range(len(out)):
            out[j] = abs(block[j] - origin[j])


@compiled()
def _classify(block: Flat, origin: Flat, low: Any, high: Any, out: Flat, inside: NDArray[np.uint8]) -> Any:
    """As `_magnitudes`; also mark those from `low` to `high` in `inside`, and return how many lie above."""
    above = np.int32(0)
    if len(origin) == 0:
        for j in range(len(out)):
            size = abs(block[j])
            out[j] = size
            inside[j] = np.uint8((size >= low) & (size <= high))
            above = np.int32(above + np.int32(size > high))
    else:
        for j in range(len(out)):
            size = abs(block[j] - origin[j])
            out[j] = size
            inside[j] = np.uint8((size >= low) & (size <= high))
            above = np.int32(above + np.int32(size > high))
    return above


@compiled()
def _collect(
    tensors: tuple[Flat, ...],
    origin: Flat,
    lows: tuple[Any, ...],
    highs: tuple[Any, ...],
    found: Flat,
    counts: NDArray[np.int64],
) -> None:
    """Write the magnitudes of each tensor from its low to its high to its row of `found`, as many as it has room for.

    Column 0 of `counts` becomes how many lie above the high, column 1 how many were written.
    """
    block, inside = np.empty(BLOCK, found.dtype), np.empty(BLOCK, np.uint8)
    groups = inside.view(np.uint64)
    for start in range(0, len(tensors[0]), BLOCK):
        size = min(BLOCK, len(tensors[0]) - start)
        inside[size:] = 0
        for i in range(len(tensors)):
            part, zero = tensors[i][start : start + size], origin[start : start + size]
            counts[i, 0] += _classify(part, zero, lows[i], highs[i], block[:size], inside)
            row, count = found[i], counts[i, 1]
            for group in range(BLOCK // _GROUP):
                if groups[group] and count <= len(row) - _GROUP:
                    for j in range(_GROUP * group, _GROUP * (group + 1)):
                        row[count] = block[j]
                        count += inside[j]
            counts[i, 1] = count


@compiled()
def _position(tensor: Flat, origin: Flat, value: Any, quota: int) -> int:
    """Return the index behind the `quota`-th magnitude that equals `value`."""
    block = np.empty(BLOCK, tensor.dtype)
    for start in range(0, len(tensor), BLOCK):
        size = min(BLOCK, len(tensor) - start)
        block[size:] = -1
        _magnitudes(tensor[start : start + size], origin[start : start + size], block[:size])
        equal = np.int32(0)
        for j in range(BLOCK):
            equal = np.int32(equal + np.int32(block[j] == value))
        if equal >= quota:
            for j in range(size):
                quota -= block[j] == value
                if quota == 0:
                    return start + j + 1
        quota -= int(equal)
    return len(tensor)
