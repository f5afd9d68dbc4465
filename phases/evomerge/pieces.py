"""Large tensors merged piece by piece, so that a merge needs less memory than the tensor that it makes.

Where an element of the result depends on that element of the inputs alone, a piece is merged like a tensor. For random
masks (DARE), whose scales depend on all elements, the masks are drawn first, a byte for each element, and the rest is
done in pieces. Other methods look at a tensor as a whole and get it whole. The blow-up guard looks at each piece.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods import METHODS, MaskKey, merge
from phases.evomerge.methods.arrays import flat, flats, working_type
from phases.evomerge.methods.consensus import Consensus, combine_kept
from phases.evomerge.methods.linear import divisor_of
from phases.evomerge.methods.masks import chance, draw
from phases.evomerge.methods.rails import check_distance
from phases.evomerge.plan import Step

PIECE = 1 << 20  # elements
_DARE = {"dare_linear": False, "dare_ties": True}  # whether signs are elected
_TINY = 1e-7  # l1 norms below this are not matched, as in `methods.task_vectors`


def merge_pieces(
    step: Step, tensors: Sequence[Tensor], base: Tensor | None, key: MaskKey, guard: float | None
) -> Iterator[Tensor]:
    """Yield the merged tensor as flat pieces in order, of type `step.dtype`. Raises `MergeError` as `merge` does."""
    if step.elements <= PIECE:
        yield _merge(step, tensors, base, key, guard)
    elif METHODS[step.method].elementwise:
        for part in _parts(step.elements):
            pieces = [tensor.view(-1)[part] for tensor in tensors]
            yield _merge(step, pieces, None if base is None else base.view(-1)[part], key, guard)
    elif step.method in _DARE and base is not None:
        yield from _dare(step, tensors, base, key, guard)
    else:
        yield _merge(step, tensors, base, key, guard)


def _merge(step: Step, tensors: Sequence[Tensor], base: Tensor | None, key: MaskKey, guard: float | None) -> Tensor:
    merged = merge(
        step.method,
        [tensor.to(step.compute) for tensor in tensors],
        base=None if base is None else base.to(step.compute),
        key=key,
        guard=guard,
        **step.parameters,
    )
    return merged.view(-1).to(step.dtype)


def _dare(step: Step, tensors: Sequence[Tensor], base: Tensor, key: MaskKey, guard: float | None) -> Iterator[Tensor]:
    try:
        yield from _dare_pieces(step, [tensor.view(-1) for tensor in tensors], base.view(-1), key, guard)
    except MergeError as error:
        raise error.inside(step.name, step.method) from None


def _dare_pieces(
    step: Step, tensors: Sequence[Tensor], base: Tensor, key: MaskKey, guard: float | None
) -> Iterator[Tensor]:
    given = step.parameters
    how = Consensus(given["weight"], _DARE[step.method], given["normalize"], given["lambda_"])
    if how.normalize and not how.elect:
        divisor_of(how.weights)
    arrays = flats([_working(step, tensor) for tensor in tensors])
    kept, norms = draw(key, arrays, flat(_working(step, base)), [chance(share) for share in given["density"]])
    scales = [whole / part if given["rescale"] and min(whole, part) >= _TINY else 1.0 for whole, part in norms]
    del arrays
    for part in _parts(step.elements):
        origin, inputs = flat(_working(step, base[part])), flats([_working(step, tensor[part]) for tensor in tensors])
        merged = combine_kept(origin, inputs, kept[part], scales, how)
        check_distance(merged.away, merged.first, inputs, origin, guard)
        yield torch.from_numpy(merged.tensor).to(step.compute).to(step.dtype)


def _working(step: Step, tensor: Tensor) -> Tensor:
    """Return a tensor rounded to the type that the recipe asks for, in the type that kernels compute in."""
    asked = tensor.to(step.compute)
    return asked.to(working_type([asked]))


def _parts(elements: int) -> Iterator[slice]:
    yield from (slice(start, min(start + PIECE, elements)) for start in range(0, elements, PIECE))
