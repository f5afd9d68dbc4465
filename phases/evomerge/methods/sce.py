"""SCE (Wan et al. 2024, FuseChat): select features by their variance, calculate coefficients, erase minorities.

It needs no data: the elements in which the inputs differ most are kept, each input counts by the mean square of what is
kept of its delta, and of each element only the deltas with the sign of their sum are averaged.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from phases.evomerge.methods.arrays import Flat, flat, flats, scalars, shaped
from phases.evomerge.methods.kernels import add_square, compiled
from phases.evomerge.methods.rails import check_distance, check_finite
from phases.evomerge.methods.select import Cut, segments, top

_LEAST = 1e-6  # mean squares that sum to less give equal coefficients; also the least divisor


def sce(tensors: Sequence[Tensor], base: Tensor, *, select_topk: float = 1.0, guard: float | None = None) -> Tensor:
    """Return the base plus the weighted mean of the deltas in the `select_topk` elements of largest variance.

    The share is of the elements whose variance over the inputs is not 0. `guard` is the rail of that name.
    """
    origin, arrays = flat(base), flats(tensors)
    variances, cut = _select(arrays, origin, select_topk)
    sizes, out = np.zeros(len(arrays)), np.empty_like(origin)
    for start, stop, (low,) in segments([cut], origin):
        for i, array in enumerate(arrays):
            sizes[i] += _square_sum(array[start:stop], origin[start:stop], variances[start:stop], low)
    check_finite(float(sizes.sum()), [*arrays, origin])
    coefficients = scalars(_coefficients(sizes / max(1, len(origin))).tolist(), origin)
    (least,), away, first = scalars([_LEAST], origin), 0.0, 0.0
    for start, stop, (low,) in segments([cut], origin):
        parts = tuple(array[start:stop] for array in arrays)
        squares = _merge(origin[start:stop], parts, variances[start:stop], low, coefficients, least, out[start:stop])
        away, first = away + squares[0], first + squares[1]
    check_distance(away, first, arrays, origin, guard)
    return shaped(out, base)


def _select(arrays: tuple[Flat, ...], origin: Flat, share: float) -> tuple[Flat, Cut]:
    """Return the variance over the deltas of each element, and the cut of those that are merged."""
    if share >= 1:
        return origin, Cut(-np.inf, len(origin))  # takes any values
    variances = np.empty_like(origin)
    nonzero = _variances(arrays, origin, variances)
    (cut,) = top([variances], None, [int(np.float32(nonzero) * np.float32(share))])  # in float32 as mergekit
    return variances, cut


def _coefficients(means: NDArray[np.float64]) -> NDArray[np.float64]:
    total = means.sum()
    return np.full(len(means), 1 / len(means)) if abs(total) < _LEAST else means / total


@compiled()
def _variances(tensors: tuple[Flat, ...], base: Flat, out: Flat) -> int:
    """Write the variance over the deltas (not corrected for their number), and return how many are not 0."""
    nonzero = 0
    for j in range(len(out)):
        mean, square = 0.0, 0.0
        for i in range(len(tensors)):
            mean += np.float64(tensors[i][j] - base[j])
        mean /= len(tensors)
        for i in range(len(tensors)):
            d = np.float64(tensors[i][j] - base[j]) - mean
            square += d * d
        out[j] = square / len(tensors)
        nonzero += out[j] != 0
    return nonzero


@compiled({"reassoc"})
def _square_sum(tensor: Flat, base: Flat, variances: Flat, low: Any) -> float:
    total = 0.0
    for j in range(len(tensor)):
        d = np.float64(tensor[j] - base[j])
        total += 0.0 if variances[j] < low else d * d
    return total


@compiled()
def _merge(
    base: Flat,
    tensors: tuple[Flat, ...],
    variances: Flat,
    low: Any,
    coefficients: tuple[Any, ...],
    least: Any,
    out: Flat,
) -> tuple[float, float]:
    zero, one = out.dtype.type(0), out.dtype.type(1)
    away, first = zero, zero
    for j in range(len(out)):
        origin, dropped, sum_ = base[j], variances[j] < low, zero
        for i in range(len(tensors)):
            sum_ += tensors[i][j] - origin
        sign, sum_, divisor = one if sum_ >= zero else -one, zero, zero
        for i in range(len(tensors)):
            d = tensors[i][j] - origin
            opposed = d * sign <= zero
            sum_ += zero if opposed else d * coefficients[i]
            divisor += zero if opposed else coefficients[i]
        sum_ = zero if dropped else sum_ / (divisor if divisor > least else least)
        out[j] = origin + sum_
        away, first = add_square(away, sum_), add_square(first, tensors[0][j] - origin)
    return away, first
