"""Lengths and angles of tensors, of whole ones or of each row, in float64.

Methods on spheres only ever add up their inputs: what they have to find are the coefficients, and those follow from the
inner products of the inputs. So they take two passes over the tensors whatever their formula is.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phases.evomerge.methods.arrays import Flat
from phases.evomerge.methods.kernels import compiled
from phases.evomerge.methods.rails import check_finite


class Rows:
    """Inputs as arrays (rows, width), as deltas from a base where one is given.

    `dim` is the dimension that a row extends along; None: each tensor is one row.
    """

    def __init__(self, tensors: Sequence[Tensor], base: Tensor | None, dim: int | None) -> None:
        self._dim = dim if tensors[0].dim() else None
        self._shape = tensors[0].shape if self._dim is None else tensors[0].movedim(self._dim, -1).shape
        self._arrays = tuple(self._table(tensor) for tensor in tensors)
        self._origin = self._arrays[0][:0] if base is None else self._table(base)

    def products(self) -> NDArray[np.float64]:
        """Return the inner products of the inputs in each row (rows, inputs, inputs).

        Raises `MergeError` where an input is not finite.
        """
        count = len(self._arrays)
        out = np.empty((len(self._arrays[0]), count, count))
        for i in range(count):
            for j in range(i + 1):
                _products(self._arrays[i], self._arrays[j], self._origin, out[:, i, j])
                out[:, j, i] = out[:, i, j]
        check_finite(float(out.sum()), [*self._arrays, self._origin])
        return out

    def sum(self, coefficients: NDArray[np.float64]) -> Tensor:
        """Return the tensor that is the sum of the inputs by coefficients (rows, inputs), plus the base."""
        out = np.empty_like(self._arrays[0])
        _sum(self._arrays, self._origin, coefficients.astype(out.dtype), out)
        merged = torch.from_numpy(out).reshape(self._shape)
        return merged if self._dim is None else merged.movedim(-1, self._dim).contiguous()

    @property
    def width(self) -> int:
        """Elements in a row."""
        return int(self._arrays[0].shape[1])

    def _table(self, tensor: Tensor) -> Flat:
        table = tensor.detach() if self._dim is None else tensor.detach().movedim(self._dim, -1)
        rows = 1 if self._dim is None else math.prod(self._shape[:-1])
        array: Flat = table.reshape(rows, -1).contiguous().numpy()
        array.flags.writeable = False
        return array


@compiled({"reassoc", "contract"})
def _product(a: Flat, b: Flat) -> float:
    total = 0.0
    for j in range(len(a)):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@compiled({"reassoc", "contract"})
def _product_from(a: Flat, b: Flat, origin: Flat) -> float:
    total = 0.0
    for j in range(len(a)):
        total += np.float64(a[j] - origin[j]) * np.float64(b[j] - origin[j])
    return total


@compiled()
def _products(a: Flat, b: Flat, origin: Flat, out: Flat) -> None:
    for row in range(len(a)):
        out[row] = _product(a[row], b[row]) if len(origin) == 0 else _product_from(a[row], b[row], origin[row])


@compiled()
def _sum(tensors: tuple[Flat, ...], origin: Flat, coefficients: Flat, out: Flat) -> None:
    for row in range(len(out)):
        line, factors = out[row], coefficients[row]
        line[:] = 0
        for i in range(len(tensors)):
            if len(origin) == 0:
                _add(tensors[i][row], factors[i], line)
            else:
                _add_delta(tensors[i][row], origin[row], factors[i], line)
        if len(origin) > 0:
            _add(origin[row], out.dtype.type(1), line)


@compiled()
def _add(tensor: Flat, factor: float, out: Flat) -> None:
    for j in range(len(out)):
        out[j] += factor * tensor[j]


@compiled()
def _add_delta(tensor: Flat, origin: Flat, factor: float, out: Flat) -> None:
    for j in range(len(out)):
        out[j] += factor * (tensor[j] - origin[j])
