"""Reinforced agent merging (arXiv 2601.13572): what one model alone changed is kept whole, shared changes averaged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from phases.evomerge.methods.arrays import Flat, flat, flats, scalars, shaped
from phases.evomerge.methods.kernels import compiled


def ram(tensors: Sequence[Tensor], base: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Return the base plus, for each element, the mean of the deltas larger than `epsilon`."""
    return _ram(flats(tensors), base, [1.0] * len(tensors), epsilon)


def ramplus_tl(
    tensors: Sequence[Tensor], base: Tensor, *, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5
) -> Tensor:
    """As `ram`, with a model's own changes enlarged by `r` times the ratio of shared to own, at most `alpha`."""
    arrays, origin = flats(tensors), flat(base)
    counts = np.zeros((len(arrays), 2), np.int64)  # (models, (shared, own))
    _count(arrays, origin, origin.dtype.type(epsilon), counts)
    ratio = counts[:, 0] / np.maximum(counts[:, 1], epsilon)
    return _ram(arrays, base, (1 + r * ratio.clip(0, alpha)).tolist(), epsilon)


def _ram(arrays: tuple[Flat, ...], base: Tensor, factors: Sequence[float], epsilon: float) -> Tensor:
    origin = flat(base)
    out = np.empty_like(origin)
    _merge(arrays, origin, scalars(factors, origin), origin.dtype.type(epsilon), out)
    return shaped(out, base)


@compiled()
def _count(tensors: tuple[Flat, ...], base: Flat, epsilon: Any, counts: NDArray[np.int64]) -> None:
    for j in range(len(base)):
        changed = 0
        for i in range(len(tensors)):
            changed += abs(tensors[i][j] - base[j]) > epsilon
        for i in range(len(tensors)):
            if abs(tensors[i][j] - base[j]) > epsilon:
                counts[i, 0] += changed > 1
                counts[i, 1] += changed == 1


@compiled()
def _merge(tensors: tuple[Flat, ...], base: Flat, factors: tuple[Any, ...], epsilon: Any, out: Flat) -> None:
    zero, one = out.dtype.type(0), out.dtype.type(1)
    for j in range(len(out)):
        origin, changed, sum_ = base[j], zero, zero
        for i in range(len(tensors)):
            changed += zero if abs(tensors[i][j] - origin) <= epsilon else one
        for i in range(len(tensors)):
            d = tensors[i][j] - origin
            part = d * factors[i] if changed == one else d / changed
            sum_ += zero if abs(d) <= epsilon else part
        out[j] = origin + sum_
