"""What is checked around every merge, so that none is silent garbage.

Inputs must have one shape and be floating-point numbers on the CPU. The result must be finite, and no further from the
base than `guard` times the input that is furthest from it (from the mean of the inputs where there is no base).
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods.arrays import Flat, flat, flats, scalars
from phases.evomerge.methods.kernels import distances, dot, total, weighted_sum

_ROUNDING = 1e-5  # of the length of the weights: a difference that is no more than rounding is let pass


def check_inputs(tensors: Sequence[Tensor]) -> None:
    """Raise `MergeError` for inputs that cannot be merged element by element."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        raise MergeError(
            f"shapes {', '.join(map(str, shapes))} differ; merge models of one shape, and of one tokenizer where it is "
            "the embedding or the head"
        )
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise MergeError(f"{tensor.dtype} is not a floating-point type; copy this tensor from one of the models")
        if tensor.device.type != "cpu":
            raise MergeError(f"an input is on {tensor.device}; move it to the CPU")


def check_finite(merged: Tensor, inputs: Sequence[Tensor]) -> None:
    """Raise `MergeError` where an element of the result is not finite, naming the inputs in which some are not."""
    if math.isfinite(total(flat(merged))):
        return
    counts = [int((~tensor.isfinite()).sum()) for tensor in inputs]
    if any(counts):
        raise MergeError(
            f"{counts} elements of the inputs are not finite (NaN or infinite); repair or leave out the model"
        )
    raise MergeError("the result is not finite; choose smaller weights or a smaller lambda")


def check_distance(merged: Tensor, inputs: Sequence[Tensor], base: Tensor | None, guard: float) -> None:
    """Raise `MergeError` where the result is not finite or lies further out than the inputs by more than `guard`."""
    result, arrays = flat(merged), flats(inputs)
    origin = flat(base) if base is not None else _mean(arrays)
    away, furthest = distances(result, arrays[0], origin)
    if not math.isfinite(away):
        check_finite(merged, [*inputs, *([] if base is None else [base])])
    for array in arrays[1:]:
        if away <= guard**2 * furthest:
            break
        furthest = max(furthest, distances(array, array, origin)[0])
    if away > guard**2 * furthest and away > _ROUNDING**2 * dot(origin, origin):
        centre = "the mean of the inputs" if base is None else "the base"
        raise MergeError(
            f"the result is {math.sqrt(away):.4g} away from {centre}, more than {guard:g} times the furthest input "
            f"({math.sqrt(furthest):.4g}); choose weights that do not cancel, a larger density, or a larger guard"
        )


def _mean(arrays: tuple[Flat, ...]) -> Flat:
    out = np.empty_like(arrays[0])
    weighted_sum(arrays, scalars([1.0] * len(arrays), out), out.dtype.type(len(arrays)), out)
    return out
