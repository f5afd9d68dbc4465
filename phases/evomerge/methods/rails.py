"""What is checked around every merge, so that none is silent garbage.

Inputs must have one shape and be floating-point numbers on the CPU. The result must be finite, and no further from the
base than `guard` times the input that is furthest from it (from the mean of the inputs where there is no base). Methods
that can, measure distances on the way, which spares a pass over the memory.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods.arrays import Flat, flat, flats, scalars
from phases.evomerge.methods.kernels import distances, total, weighted_sum

_ROUNDING = 1e-5  # of the length of the weights: a difference that is no more than rounding is let pass


def check_inputs(tensors: Sequence[Tensor]) -> None:
    """Raise `MergeError` for inputs that cannot be merged element by element."""
    first = tensors[0].shape
    if any(tensor.shape != first for tensor in tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise MergeError(
            f"shapes {shapes} differ; merge models of one shape, and with one tokenizer for the embedding or the head"
        )
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise MergeError(f"{tensor.dtype} is not a floating-point type; copy this tensor from one of the models")
        if tensor.device.type != "cpu":
            raise MergeError(f"an input is on {tensor.device}; move it to the CPU")


def check_finite(value: float, inputs: Sequence[Flat]) -> None:
    """Raise `MergeError` where a sum over the result is not finite, naming the inputs that are not."""
    if math.isfinite(value):
        return
    counts = [int(np.count_nonzero(~np.isfinite(array))) for array in inputs]
    if any(counts):
        raise MergeError(f"{counts} elements of the inputs are not finite (NaN or infinite); leave out that model")
    raise MergeError("the result is not finite; choose smaller weights or a smaller lambda")


def check_result(merged: Tensor, tensors: Sequence[Tensor], base: Tensor | None, guard: float | None) -> None:
    """Raise `MergeError` where the result is not finite or too far out.

    Without a guard, or for one input alone, which is its own mean: only where it is not finite.
    """
    result, arrays = flat(merged), flats(tensors)
    if guard is None or (base is None and len(arrays) == 1):
        return check_finite(total(result), arrays if base is None else [*arrays, flat(base)])
    origin = _mean(arrays) if base is None else flat(base)
    return check_distance(*distances(result, arrays[0], origin), arrays, origin, guard)


def check_distance(away: float, first: float, arrays: Sequence[Flat], origin: Flat, guard: float | None) -> None:
    """As `check_result`, from the squared distances of the result and of the first input from the origin."""
    check_finite(away + first, [*arrays, origin])
    if guard is None:
        return
    furthest = first
    for array in arrays[1:]:
        if away <= guard**2 * furthest:
            return
        furthest = max(furthest, distances(array, array, origin)[0])
    if away > guard**2 * furthest and away > _ROUNDING**2 * distances(origin, origin, np.zeros_like(origin))[0]:
        raise MergeError(
            f"the result is {math.sqrt(away):.4g} away from the base (or mean), more than {guard:g} times the furthest "
            f"input ({math.sqrt(furthest):.4g}); choose weights that do not cancel, a larger density, or a larger guard"
        )


def _mean(arrays: tuple[Flat, ...]) -> Flat:
    out = np.empty_like(arrays[0])
    weighted_sum(arrays, scalars([1.0] * len(arrays), out), out.dtype.type(len(arrays)), out)
    return out
