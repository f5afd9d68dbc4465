"""Weighted sums of weights ("Model soups", Wortsman et al. 2022), and the copy that layer-wise selection is made of."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods.arrays import flats, scalars, shaped
from phases.evomerge.methods.kernels import weighted_sum


def linear(tensors: Sequence[Tensor], *, weight: Sequence[float], normalize: bool = True) -> Tensor:
    """Return `sum_i weight_i * tensor_i`, divided by the sum of the weights where `normalize`.

    Raises `MergeError` where weights that cancel would divide.
    """
    arrays = flats(tensors)
    weights = scalars(weight, arrays[0])
    divisor = divisor_of(weights) if normalize else arrays[0].dtype.type(1)
    out = np.empty_like(arrays[0])
    weighted_sum(arrays, weights, divisor, out)
    return shaped(out, tensors[0])


def divisor_of(weights: Sequence[float]) -> float:
    """Return the sum of the weights. Raises `MergeError` where they cancel to less than a millionth of the largest."""
    total = sum(weights[1:], start=weights[0])
    if not abs(total) > 1e-6 * max(abs(weight) for weight in weights):
        values = [float(f"{weight:.6g}") for weight in weights]
        raise MergeError(f"weight = {values}: they sum to {total:.2g}; change one, or set normalize to false")
    return total


def passthrough(tensors: Sequence[Tensor], *, scale: Sequence[float]) -> Tensor:
    """Return the one input, times `scale`."""
    return tensors[0] * scale[0]
