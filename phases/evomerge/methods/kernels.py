"""The inner loops, compiled by Numba: one pass over the inputs each, in blocks that stay in the first-level cache.

Arithmetic is written in the order of the formulas and no reordering is allowed where a result depends on it, so that
float32 results are bit-equal to the same formulas in torch. `contract` (fused multiply-add) is on where torch's
`addcmul` fuses too. Sums over a whole tensor are kept in float64. Compiled code is cached beside this file.
Comparisons are written so that a NaN passes them and reaches the result, where it is found.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from phases.evomerge.methods.arrays import Flat

BLOCK = 1024  # elements; six float32 blocks are half of a 48 KiB cache
_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(fastmath: bool | set[str] = False) -> Callable[[_Function], _Function]:
    """Compile at the first call for the types that it gets, without the interpreter's lock or division checks."""
    decorator: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)
    return cast(Callable[[_Function], _Function], decorator)


@compiled({"contract"})
def weighted_sum(tensors: tuple[Flat, ...], weights: tuple[Any, ...], divisor: Any, out: Flat) -> None:
    """Write `sum_i weights[i] * tensors[i] / divisor` to `out`."""
    for j in range(len(out)):
        sum_ = out.dtype.type(0)
        for i in range(len(tensors)):
            sum_ += tensors[i][j] * weights[i]
        out[j] = sum_ / divisor


@compiled({"reassoc", "contract"})
def add_square(sum_: Any, value: Any) -> Any:
    """Return `sum_` plus the square of `value`: for lengths that are compared, in the type of the inputs."""
    return sum_ + value * value


@compiled({"reassoc", "contract"})
def total(a: Flat) -> float:
    """Return the sum in float64: finite exactly where every element is."""
    result = 0.0
    for j in range(len(a)):
        result += np.float64(a[j])
    return result


@compiled({"reassoc", "contract"})
def distances(merged: Flat, other: Flat, origin: Flat) -> tuple[float, float]:
    """Return the squared distances of `merged` and of `other` from `origin`."""
    first, second = 0.0, 0.0
    for j in range(len(origin)):
        x, y = np.float64(merged[j] - origin[j]), np.float64(other[j] - origin[j])
        first += x * x
        second += y * y
    return first, second
