"""Methods that merge what training added to a common base: deltas are thinned out, weighted, and added to the base.

Task arithmetic (Ilharco et al. 2022), TIES (Yadav et al. 2023), DARE (Yu et al. 2023), breadcrumbs (Davari & Belilovsky
2023) and DELLA (Deep et al. 2024) are one pass (`consensus`) with four ways to choose what is kept of each delta.
Thresholds are per tensor, as in mergekit and not over the whole model as in the TIES paper; exactly
`max(1, int(density * n))` elements are kept, of equal ones the first. A rescaled delta has the l1 norm that it had
before it was thinned (mergekit), which for random masks is 1/density (DARE) up to chance. The distance of the result
from the base is measured on the way; `guard` is the rail of that name.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods.arrays import Flat, flat, flats, shaped
from phases.evomerge.methods.consensus import Band, Consensus, combine_bands, combine_kept, l1_norms
from phases.evomerge.methods.linear import divisor_of
from phases.evomerge.methods.masks import MaskKey, chance, draw, rank_chances
from phases.evomerge.methods.rails import check_distance, check_finite
from phases.evomerge.methods.select import EVERYTHING, top

_TINY = 1e-7  # l1 norms below this are not matched


def task_arithmetic(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Sequence[float],
    normalize: bool = False,
    lambda_: float = 1.0,
    guard: float | None = None,
) -> Tensor:
    """Return `base + lambda * sum_i weight_i * delta_i`, divided by the sum of the weights where `normalize`."""
    how = Consensus(weight, False, normalize, lambda_)
    return shaped(_combine(flats(tensors), flat(base), [Band(EVERYTHING)] * len(tensors), how, guard), base)


def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    guard: float | None = None,
) -> Tensor:
    """Keep the `density` largest of each delta, elect a sign for each element, and average the deltas that have it."""
    origin, arrays = flat(base), flats(tensors)
    bands = keep_bands(arrays, origin, density, [0.0] * len(tensors), rescale, least=1)
    return shaped(_combine(arrays, origin, bands, Consensus(weight, True, normalize, lambda_), guard), base)


def breadcrumbs(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    elect: bool = False,
    guard: float | None = None,
) -> Tensor:
    """Drop the `gamma` largest of each delta, keep the `density` largest of the rest, and add up (`elect`: as TIES)."""
    origin, arrays = flat(base), flats(tensors)
    bands = keep_bands(arrays, origin, density, gamma, rescale)
    return shaped(_combine(arrays, origin, bands, Consensus(weight, elect, normalize, lambda_), guard), base)


def dare(
    tensors: Sequence[Tensor],
    base: Tensor,
    key: MaskKey,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    elect: bool = False,
    guard: float | None = None,
) -> Tensor:
    """Keep each element of each delta with chance `density`, and add up (`elect`: as TIES)."""
    chances = [chance(value) for value in density]
    return _random(tensors, base, key, chances, rescale, Consensus(weight, elect, normalize, lambda_), guard)


def della(
    tensors: Sequence[Tensor],
    base: Tensor,
    key: MaskKey,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    elect: bool = False,
    guard: float | None = None,
) -> Tensor:
    """As `dare`, with chances from `density - epsilon` for a row's smallest element to `density + epsilon`, by rank.

    Rows are along dimension 1, and the whole tensor where it has one dimension; in a row of one element the chance is
    `density`. Raises `MergeError` where a chance would not lie between 0 and 1.
    """
    for share, spread in zip(density, epsilon, strict=True):
        if 0 < share < 1 and not 0 < share - spread <= share + spread < 1:
            raise MergeError(
                f"density {share} ± epsilon {spread} leaves the range from 0 to 1; choose a smaller epsilon"
            )
    chances = [
        rank_chances(tensor - base, share, spread) if 0 < share < 1 else chance(share)
        for tensor, share, spread in zip(tensors, density, epsilon, strict=True)
    ]
    return _random(tensors, base, key, chances, rescale, Consensus(weight, elect, normalize, lambda_), guard)


def _combine(
    arrays: tuple[Flat, ...], origin: Flat, bands: Sequence[Band], how: Consensus, guard: float | None
) -> Flat:
    check_weights(how)
    merged = combine_bands(origin, arrays, bands, how)
    check_distance(merged.away, merged.first, arrays, origin, guard)
    return merged.tensor


def check_weights(how: Consensus) -> None:
    """Raise `MergeError` where weights that cancel would divide every element."""
    if how.normalize and not how.elect:
        divisor_of(how.weights)


def keep_bands(
    arrays: tuple[Flat, ...],
    origin: Flat,
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: bool,
    least: int = 0,
) -> list[Band]:
    """Return for each delta the band of its `int(density * n)` largest magnitudes behind its `int(gamma * n)` largest.

    Fewer outliers are dropped where that many could not be kept otherwise. At least `least` are kept, unless the
    density is 0; all are where it is 1.
    """
    elements = len(origin)
    keep = [max(least, int(share * elements)) if share > 0 else 0 for share in density]
    drop = [min(int(outliers * elements), elements - kept) for outliers, kept in zip(gamma, keep, strict=True)]
    reach = [dropped + kept for dropped, kept in zip(drop, keep, strict=True)]
    cuts = top([*arrays, *arrays], origin, [*reach, *drop])
    bands = [Band(lower, upper) for lower, upper in zip(cuts[: len(arrays)], cuts[len(arrays) :], strict=True)]
    if not rescale:
        return bands
    norms = [l1_norms(values, origin, band) for values, band in zip(arrays, bands, strict=True)]
    return [replace(band, scale=match_norms(*each)) for band, each in zip(bands, norms, strict=True)]


def _random(
    tensors: Sequence[Tensor],
    base: Tensor,
    key: MaskKey,
    chances: Sequence[NDArray[np.uint64]],
    rescale: bool,
    how: Consensus,
    guard: float | None,
) -> Tensor:
    """Draw a mask for each delta, then combine what is kept."""
    check_weights(how)
    origin, arrays = flat(base), flats(tensors)
    kept, norms = draw(key, arrays, origin, chances)
    check_finite(sum(whole for whole, _ in norms), [*arrays, origin])
    scales = [match_norms(*each) if rescale else 1.0 for each in norms]
    merged = combine_kept(origin, arrays, kept, scales, how)
    check_distance(merged.away, merged.first, arrays, origin, guard)
    return shaped(merged.tensor, base)


def match_norms(whole: float, part: float) -> float:
    """Return the factor that gives what is left of a delta the l1 norm of the whole."""
    return 1.0 if whole < _TINY or part < _TINY else whole / part
