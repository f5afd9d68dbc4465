"""Large tensors merged piece by piece, so that a merge needs less memory than the tensor that it makes.

Where an element of the result depends on that element of the inputs alone, a piece is merged like a tensor. What a
thinned task vector keeps depends on all elements: random masks (DARE) are drawn first, a byte for each element, or the
cuts of the largest magnitudes (TIES, breadcrumbs) found first, and the rest is done in pieces. Other methods look at a
tensor as a whole and get it whole. The blow-up guard looks at each piece. Half precision is widened on disk and not in
memory.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods import METHODS, MaskKey, merge
from phases.evomerge.methods.arrays import Flat, flats
from phases.evomerge.methods.consensus import Combined, Consensus, combine_bands, combine_kept
from phases.evomerge.methods.masks import chance, draw
from phases.evomerge.methods.rails import check_distance
from phases.evomerge.methods.task_vectors import check_weights, keep_bands, match_norms
from phases.evomerge.plan import Step

PIECE = 1 << 20  # elements
_ELECTS = {"dare_linear": False, "dare_ties": True, "ties": True, "breadcrumbs": False, "breadcrumbs_ties": True}


def merge_pieces(
    step: Step, inputs: Sequence[Tensor], key: MaskKey, guard: float | None, folder: Path
) -> Iterator[Tensor]:
    """Yield the merged tensor as flat pieces in order, of type `step.dtype`. Raises `MergeError` as `merge` does.

    The last of the inputs is the base if the step has one. `folder` is on the disk that holds what is widened.
    """
    if step.elements <= PIECE:
        merged = _merge(step, [tensor.to(step.compute) for tensor in inputs], key, guard)
        yield merged.view(-1).to(step.dtype)
    elif METHODS[step.method].elementwise:
        for part in _parts(step.elements):
            yield _merge(step, [tensor.view(-1)[part].to(step.compute) for tensor in inputs], key, guard).to(step.dtype)
    elif step.method in _ELECTS:
        yield from _task_vectors(step, flats([_working(step, tensor, folder) for tensor in inputs]), key, guard)
    else:
        merged = _merge(step, [_working(step, tensor, folder) for tensor in inputs], key, guard).view(-1)
        yield from (merged[part].to(step.compute).to(step.dtype) for part in _parts(step.elements))


def _merge(step: Step, inputs: Sequence[Tensor], key: MaskKey, guard: float | None) -> Tensor:
    """Merge inputs, of which the last is the base if the step has one."""
    tensors, base = (inputs, None) if step.base is None else (inputs[:-1], inputs[-1])
    return merge(step.method, tensors, base=base, key=key, guard=guard, **step.parameters)


def _task_vectors(step: Step, arrays: tuple[Flat, ...], key: MaskKey, guard: float | None) -> Iterator[Tensor]:
    """Yield the pieces of a merge of thinned task vectors of the flat `arrays`, of which the last is the base."""
    given, base, tensors = step.parameters, arrays[-1], arrays[:-1]
    how = Consensus(given["weight"], _ELECTS[step.method], given["normalize"], given["lambda_"])
    try:
        check_weights(how)
        thin = _masked if "dare" in step.method else _banded
        combine = thin(step, tensors, base, key, how)
        for part in _parts(step.elements):
            inputs = tuple(tensor[part] for tensor in tensors)
            merged = combine(part, inputs)
            check_distance(merged.away, merged.first, inputs, base[part], guard)
            yield torch.from_numpy(merged.tensor).to(step.compute).to(step.dtype)
    except MergeError as error:
        raise error.inside(step.name, step.method) from None


_Combine: TypeAlias = Callable[[slice, tuple[Flat, ...]], Combined]


def _masked(step: Step, tensors: tuple[Flat, ...], base: Flat, key: MaskKey, how: Consensus) -> _Combine:
    """Draw the masks of DARE; the result merges a part."""
    chances = [chance(share) for share in step.parameters["density"]]
    kept, norms = draw(key, tensors, base, chances)
    scales = [match_norms(*each) if step.parameters["rescale"] else 1.0 for each in norms]
    return lambda part, inputs: combine_kept(base[part], inputs, kept[part], scales, how)


def _banded(step: Step, tensors: tuple[Flat, ...], base: Flat, key: MaskKey, how: Consensus) -> _Combine:
    """Find the cuts of TIES or breadcrumbs; the result merges a part."""
    given = step.parameters
    gamma = given.get("gamma", [0.0] * len(tensors))
    bands = keep_bands(tensors, base, given["density"], gamma, given["rescale"], least=int(step.method == "ties"))
    return lambda part, inputs: combine_bands(base[part], inputs, [band.behind(part.start) for band in bands], how)


def _working(step: Step, tensor: Tensor, folder: Path) -> Tensor:
    """Return a tensor, rounded to the type that the recipe asks for, in the type that kernels compute in.

    Where that is another type than its own, it is mapped from a file without a name, whose pages can leave memory.
    """
    kind = torch.float64 if step.compute == torch.float64 else torch.float32
    if tensor.dtype == step.compute == kind:
        return tensor
    file = folder / f".working-{uuid.uuid4().hex}"
    working = torch.from_file(str(file), shared=True, size=step.elements, dtype=kind)
    file.unlink()
    for part in _parts(step.elements):
        working[part] = tensor.view(-1)[part].to(step.compute)
    return working.view(step.shape)


def _parts(elements: int) -> Iterator[slice]:
    yield from (slice(start, min(start + PIECE, elements)) for start in range(0, elements, PIECE))
