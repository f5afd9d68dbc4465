"""Interpolation and means along great circles, of two inputs (Shoemake 1985) and of more.

Inputs that point in opposite directions have no shortest arc between them: the formulas give a tensor of zeros there,
or a huge one. Here it is an error, except for tensors of one element, which have no direction and are averaged.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods.geometry import Rows

_STRAIGHT = 0.9995  # of the cosine: beyond it slerp takes the arc for a line
_PARALLEL = 1e-16  # of the squared sine: nuslerp does so below this
_NOISE = 1e-6  # of the mean of unit vectors: a shorter one points wherever rounding says
_SHORT = 1e-8  # a tensor of this length or less has no direction


def slerp(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """Return the point at `t` of the arc from the base (0) to the one other tensor (1), both flattened."""
    rows = Rows([base, tensors[0]], None, None)
    products = rows.products()
    norms = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
    cosine = products[:, 0, 1] / np.where(norms > _SHORT, norms, 1.0).prod(axis=1)
    return rows.sum(_on_arc(cosine, np.abs(cosine) > _STRAIGHT, t, rows.width))


def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    weight: Sequence[float],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Tensor:
    """Return the point of the arc between two tensors, or between their deltas, that their weights say.

    The arc is between whole tensors (flatten), or between vectors along the first (row-wise) or last dimension.
    Weights that cancel count as equal (mergekit).
    """
    total = weight[0] + weight[1]
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    dim = None if nuslerp_flatten else 0 if nuslerp_row_wise else -1
    rows = Rows(tensors, base, dim)
    products = rows.products()
    norms = np.sqrt(np.diagonal(products, axis1=1, axis2=2)).clip(min=1e-7)
    cosine = (products[:, 0, 1] / norms.prod(axis=1)).clip(-1, 1)
    return rows.sum(_on_arc(cosine, 1 - cosine**2 <= _PARALLEL, t, rows.width))


def multislerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    weight: Sequence[float],
    normalize_weights: bool = True,
    eps: float = _SHORT,
) -> Tensor:
    """Return the direction of the weighted mean of unit vectors, times the weighted mean of their lengths.

    mergekit's detour through the tangent space at that mean leads nowhere: the weighted tangents cancel there.
    """
    if len(tensors) == 1:
        return tensors[0].clone()
    weights = np.asarray(weight, np.float64)
    if normalize_weights:
        weights = weights / _nonzero(weights.sum(), "the weights cancel; change one, or set normalize_weights to false")
    rows = Rows(tensors, base, None)
    (products,) = rows.products()
    norms = np.sqrt(np.diagonal(products))
    mean = weights / (norms + eps)
    length = _length(mean, products)
    if length < max(eps, _NOISE):
        return _no_direction(rows, weights, bool((norms > eps).any()))
    return rows.sum((mean / length * (weights @ norms))[None])


def karcher(tensors: Sequence[Tensor], *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """Return the point of the sphere with the least sum of squared arc lengths, times the mean length of the inputs.

    Each step follows the mean of the arcs to the inputs, until it is shorter than `tol` radians. Inputs no longer than
    `tol` have no direction; they only count in the mean length.
    """
    rows = Rows(tensors, None, None)
    (products,) = rows.products()
    norms = np.sqrt(np.diagonal(products))
    valid = norms > tol
    if len(tensors) == 1 or not valid.any():
        return tensors[0] * float(len(tensors) == 1)
    units = np.divide(1.0, norms, out=np.zeros_like(norms), where=valid)  # unit vector i is input i times this
    cosines = products * np.outer(units, units)
    share = valid / valid.sum()
    length = _length(share, cosines)
    if length < tol:
        return _no_direction(rows, np.full(len(norms), 1 / len(norms)), cancel=True)
    mean = share / length  # of the unit vectors
    for _ in range(max_iter):
        dots = (cosines @ mean).clip(-1, 1)
        if rows.width > 1 and dots.min() < -_STRAIGHT:
            raise MergeError(
                f"an input points away from the mean (cosine {dots.min():.5f}); leave it out, or use linear"
            )
        mean, step = _karcher_step(mean, dots, cosines, share, tol)
        if step < tol:
            break
    return rows.sum((mean * units * norms.mean())[None])


def _karcher_step(
    mean: NDArray[np.float64],
    dots: NDArray[np.float64],
    cosines: NDArray[np.float64],
    share: NDArray[np.float64],
    tol: float,
) -> tuple[NDArray[np.float64], float]:
    """Return the next mean, as coefficients of the unit vectors, and the length of the step to it.

    What points the same way as the mean, or (of tensors of one element) the other way, does not pull it aside.
    """
    angles = np.arccos(dots)
    aside = (angles >= tol) & (dots > -_STRAIGHT)
    pull = np.where(aside, share * angles / np.where(aside, np.sin(angles), 1.0), 0.0)
    tangent = pull - (pull @ dots) * mean
    step = _length(tangent, cosines)
    if step < tol:
        return mean, step
    mean = np.cos(step) * mean + np.sin(step) / step * tangent
    return mean / _length(mean, cosines), step


def _length(coefficients: NDArray[np.float64], products: NDArray[np.float64]) -> float:
    return math.sqrt(max(float(coefficients @ products @ coefficients), 0.0))


def _on_arc(cosine: NDArray[np.float64], straight: NDArray[np.bool_], t: float, width: int) -> NDArray[np.float64]:
    """Return the weights (rows, 2) of the two ends of arcs at `t`; on lines where `straight`."""
    if width > 1 and 0 < t < 1 and bool((cosine < -_STRAIGHT).any()):
        raise MergeError(
            f"the inputs point in opposite directions (cosine {cosine.min():.5f}), with no shortest arc between them; "
            "merge this tensor by linear"
        )
    angle = np.arccos(np.where(straight, 0.0, cosine))
    ends = np.array([1 - t, t])
    arc = np.sin(ends * angle[:, None]) / np.sin(angle)[:, None]
    return np.where(straight[:, None], ends, arc)


def _no_direction(rows: Rows, weights: NDArray[np.float64], cancel: bool) -> Tensor:
    """Return the weighted sum of scalars or zeros; raise `MergeError` for vectors whose directions cancel."""
    if cancel and rows.width > 1:
        raise MergeError(
            "the directions of the inputs cancel: their mean has none; change a weight, or merge by linear"
        )
    return rows.sum(weights[None])


def _nonzero(value: float, problem: str) -> float:
    if abs(value) < 1e-6:
        raise MergeError(problem)
    return value
