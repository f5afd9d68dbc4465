"""From the inputs to the merged tensor in one pass: deltas, what is kept of them, agreement of signs, sum.

Every task-vector method is this pass with its own rule of what is kept: a band of magnitudes, or a bit per element and
model. The loop over the models is inside the loop over the elements and is unrolled for their number, so everything
between the inputs and the output stays in registers. The order of operations is that of the formulas
`D_i = (d_i * scale_i) * weight_i` and `base + sum(D_i) / sum(weight_i) * lambda`, sums in the order of the models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from phases.evomerge.methods.arrays import Flat, scalars
from phases.evomerge.methods.kernels import add_square, compiled
from phases.evomerge.methods.select import NOTHING, Cut, segments


@dataclass(frozen=True)
class Band:
    """What is kept of a delta: the elements within `lower` that are not within `upper`; they are then scaled."""

    lower: Cut
    upper: Cut = NOTHING
    scale: float = 1.0

    def behind(self, start: int) -> Self:
        """Return the band as a part of the tensor that begins at `start` sees it."""
        return replace(self, lower=self.lower.behind(start), upper=self.upper.behind(start))


@dataclass(frozen=True)
class Consensus:
    """How deltas are combined. `elect`: of each element only those deltas that have the sign of their sum."""

    weights: Sequence[float]
    elect: bool
    normalize: bool
    lambda_: float

    def numbers(self, like: Flat) -> tuple[tuple[Any, ...], Any]:
        """Return (weights, lambda) of the type of `like`."""
        return scalars(self.weights, like), like.dtype.type(self.lambda_)


@dataclass(frozen=True)
class Combined:
    """A merged tensor, and the squared distances from the base of it and of the first input.

    Thinning at random and rescaling by a factor lengthens a delta by its root; the largest such factor is taken out of
    `away`, which is for judging whether deltas blow each other up.
    """

    tensor: Flat
    away: float
    first: float


def combine_bands(base: Flat, tensors: tuple[Flat, ...], bands: Sequence[Band], how: Consensus) -> Combined:
    """Return the merged tensor where each delta is kept within its band."""
    out, away, first = np.empty_like(base), 0.0, 0.0
    (weights, last), scales = how.numbers(base), scalars([band.scale for band in bands], base)
    for start, stop, lows, highs in _band_segments(bands, base):
        parts = tuple(tensor[start:stop] for tensor in tensors)
        squares = _combine_bands(
            base[start:stop], parts, lows, highs, scales, weights, how.elect, how.normalize, last, out[start:stop]
        )
        away, first = away + squares[0], first + squares[1]
    return Combined(out, away, first)


def combine_kept(
    base: Flat, tensors: tuple[Flat, ...], kept: NDArray[np.uint64], scales: Sequence[float], how: Consensus
) -> Combined:
    """Return the merged tensor where bit i of `kept` (elements,) says whether delta i is kept at that element."""
    out = np.empty_like(base)
    weights, last = how.numbers(base)
    squares = _combine_kept(base, tensors, kept, scalars(scales, base), weights, how.elect, how.normalize, last, out)
    return Combined(out, squares[0] / max(1.0, *scales), squares[1])


def l1_norms(values: Flat, origin: Flat, band: Band) -> tuple[float, float]:
    """Return the l1 norms of a delta: of all of it, and of what the band keeps."""
    whole, part = 0.0, 0.0
    for start, stop, (low,), (high,) in _band_segments([band], origin):
        sums = _l1_norms(values[start:stop], origin[start:stop], low, high)
        whole, part = whole + sums[0], part + sums[1]
    return whole, part


def _band_segments(bands: Sequence[Band], like: Flat) -> Iterator[tuple[int, int, tuple[Any, ...], tuple[Any, ...]]]:
    """Yield (start, stop, lows, highs): there, what is kept are the magnitudes from low up to and without high.

    A high that drops nothing is a NaN, so that an infinite delta is not taken for an outlier.
    """
    cuts = [cut for band in bands for cut in (band.lower, band.upper)]
    for start, stop, values in segments(cuts, like):
        yield (
            start,
            stop,
            values[::2],
            tuple(value if np.isfinite(value) else like.dtype.type(np.nan) for value in values[1::2]),
        )


@compiled({"reassoc"})
def _l1_norms(values: Flat, origin: Flat, low: Any, high: Any) -> tuple[float, float]:
    whole, part = 0.0, 0.0
    for j in range(len(values)):
        size = abs(values[j] - origin[j])
        whole += np.float64(size)
        part += 0.0 if (size < low) | (size >= high) else np.float64(size)
    return whole, part


@compiled()
def _combine_bands(
    base: Flat,
    tensors: tuple[Flat, ...],
    lows: tuple[Any, ...],
    highs: tuple[Any, ...],
    scales: tuple[Any, ...],
    weights: tuple[Any, ...],
    elect: bool,
    normalize: bool,
    last: Any,
    out: Flat,
) -> tuple[float, float]:
    zero, one = out.dtype.type(0), out.dtype.type(1)
    away, first = zero, zero
    for j in range(len(out)):
        origin, sum_, divisor = base[j], zero, zero
        for i in range(len(tensors)):
            d = tensors[i][j] - origin
            dropped = (abs(d) < lows[i]) | (abs(d) >= highs[i])
            sum_ += zero if dropped else d * scales[i] * weights[i]
            divisor += weights[i]
        if elect:
            sign, sum_, divisor = one if sum_ >= zero else -one, zero, zero
            for i in range(len(tensors)):
                d = tensors[i][j] - origin
                dropped = (abs(d) < lows[i]) | (abs(d) >= highs[i])
                d = zero if dropped else d * scales[i] * weights[i]
                opposed = d * sign <= zero
                sum_ += zero if opposed else d
                divisor += zero if opposed else weights[i]
        if normalize:
            sum_ /= one if divisor == zero else divisor
        sum_ *= last
        out[j] = origin + sum_
        away, first = add_square(away, sum_), add_square(first, tensors[0][j] - origin)
    return away, first


@compiled()
def _combine_kept(
    base: Flat,
    tensors: tuple[Flat, ...],
    kept: NDArray[np.uint64],
    scales: tuple[Any, ...],
    weights: tuple[Any, ...],
    elect: bool,
    normalize: bool,
    last: Any,
    out: Flat,
) -> tuple[float, float]:
    zero, one = out.dtype.type(0), out.dtype.type(1)
    away, first = zero, zero
    for j in range(len(out)):
        origin, bits, sum_, divisor = base[j], kept[j], zero, zero
        for i in range(len(tensors)):
            d = (tensors[i][j] - origin) * scales[i] * weights[i]
            sum_ += d if (bits >> kept.dtype.type(i)) & kept.dtype.type(1) else zero
            divisor += weights[i]
        if elect:
            sign, sum_, divisor = one if sum_ >= zero else -one, zero, zero
            for i in range(len(tensors)):
                d = (tensors[i][j] - origin) * scales[i] * weights[i]
                d = d if (bits >> kept.dtype.type(i)) & kept.dtype.type(1) else zero
                opposed = d * sign <= zero
                sum_ += zero if opposed else d
                divisor += zero if opposed else weights[i]
        if normalize:
            sum_ /= one if divisor == zero else divisor
        sum_ *= last
        out[j] = origin + sum_
        away, first = add_square(away, sum_), add_square(first, tensors[0][j] - origin)
    return away, first
