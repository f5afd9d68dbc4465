"""Interpolation along great circles (Shoemake 1985).

Lengths and angles are computed in float64, once per tensor; what is left is a weighted sum of the inputs.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods.arrays import flat, scalars, shaped
from phases.evomerge.methods.kernels import dot, interpolate

_COLLINEAR = 0.9995  # of the cosine: beyond it the arc is taken for a line
_SHORT = 1e-8  # a tensor of this length or less has no direction


def slerp(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """Return the point at `t` of the arc from the base (0) to the one other tensor (1), both flattened.

    Where the two are nearly collinear it is a line. Raises `MergeError` where they point in opposite directions, since
    no arc is the shortest then and the line leads through 0; tensors of one element have no direction and are averaged.
    """
    a, b = flat(base), flat(tensors[0])
    norms = [length if (length := math.sqrt(dot(x, x))) > _SHORT else 1.0 for x in (a, b)]
    cosine = dot(a, b) / (norms[0] * norms[1])
    if cosine < -_COLLINEAR and len(a) > 1 and 0 < t < 1:
        raise MergeError(
            f"the inputs point in opposite directions (cosine {cosine:.5f}): there is no shortest arc between them; "
            "merge this tensor by linear, or set t to 0 or 1"
        )
    weights = scalars((1 - t, t) if abs(cosine) > _COLLINEAR else _on_arc(math.acos(cosine), t), a)
    out = np.empty_like(a)
    interpolate(a, b, weights[0], weights[1], out)
    return shaped(out, base)


def _on_arc(angle: float, t: float) -> tuple[float, float]:
    """Return the weights of the two ends of an arc at `t`."""
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
