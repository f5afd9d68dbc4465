"""From a recipe to one `Step` per tensor of the result, with every name, shape, dtype and parameter resolved.

Planning reads headers only. What is wrong with a merge is found here, before anything is written: a tensor that one
model lacks, shapes that differ, a vocabulary that another model does not have, a parameter that the method has not.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch

from phases.errors import ArtifactError
from phases.evomerge import layers
from phases.evomerge.checkpoint import Checkpoint, open_checkpoint
from phases.evomerge.errors import MergeError
from phases.evomerge.methods import MergeMethod
from phases.evomerge.model_config import merged_config
from phases.evomerge.parameters import bind, known_method
from phases.evomerge.recipe import Recipe, Slice
from phases.evomerge.vocabulary import tokenizer_files

COPY = "copy"  # the method of a step that takes over a buffer, on which all models must agree
_DERIVED = "rotary_emb.inv_freq"  # stored by old releases, computed from the configuration by all


class TensorRef(NamedTuple):
    """A tensor of a model; `model` is as the recipe names it."""

    model: str
    name: str


@dataclass(frozen=True)
class Step:
    """How one tensor of the result is made: inputs and base are cast to `compute`, merged, and written as `dtype`."""

    name: str
    shape: tuple[int, ...]
    method: str
    inputs: tuple[TensorRef, ...]
    base: TensorRef | None
    parameters: dict[str, Any]
    compute: torch.dtype
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """The bytes that it takes in the result."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class MergePlan:
    """A merge that is ready to run. `config` is the result's `config.json`, `companions` are files to copy."""

    recipe: Recipe
    checkpoints: dict[str, Checkpoint]
    steps: tuple[Step, ...]
    config: dict[str, Any]
    companions: tuple[Path, ...]

    @property
    def parameters(self) -> int:
        """The number of values in the result."""
        return sum(step.elements for step in self.steps)

    @property
    def bytes(self) -> int:
        """The bytes of the result's tensors."""
        return sum(step.bytes for step in self.steps)


@dataclass(frozen=True)
class _Part:
    """A slice with its models opened: source n gives `depth` layers from `starts[n]` on; `base` is one of them."""

    slice: Slice
    checkpoints: tuple[Checkpoint, ...]
    starts: tuple[int, ...]
    depth: int
    base: int | None


def plan_merge(recipe: Recipe) -> MergePlan:
    """Resolve a recipe. Raises `ConfigError`, `ArtifactError` or `MergeError` naming file and key."""
    method = known_method(recipe)
    checkpoints = {model: open_checkpoint(model) for model in recipe.models}
    _check_architectures(list(checkpoints.values()))
    parts = [_open_part(recipe, method, n, checkpoints) for n in range(len(recipe.slices))]
    steps = tuple(_steps(recipe, method, parts))
    donor = checkpoints[recipe.models[0]]
    order = [part.starts[0] + n for part in parts for n in range(part.depth)]
    dtypes = {step.dtype for step in steps if step.dtype.is_floating_point}
    has_head = any(layers.is_head(step.name) for step in steps)
    return MergePlan(
        recipe=recipe,
        checkpoints=checkpoints,
        steps=steps,
        config=merged_config(donor, order, dtypes, has_head=has_head),
        companions=tokenizer_files(recipe, checkpoints, donor),
    )


def _open_part(recipe: Recipe, method: MergeMethod, n: int, checkpoints: dict[str, Checkpoint]) -> _Part:
    """Check the models, layers and base of slice `n`."""
    part = recipe.slices[n]
    where = part.scope.where.removesuffix(".parameters") or "models"
    models = [source.model for source in part.sources]
    if twice := [model for model in models if models.count(model) > 1]:
        raise recipe.error(where, twice[0], "named twice as a source", "keep one, or copy the checkpoint")
    opened = tuple(checkpoints[model] for model in models)
    spans = [source.layers or (0, c.stacks.depth) for source, c in zip(part.sources, opened, strict=True)]
    for source, checkpoint, (start, end) in zip(part.sources, opened, spans, strict=True):
        if source.layers is not None and len(checkpoint.stacks.prefixes) != 1:
            problem = f"{checkpoint.uri} has {len(checkpoint.stacks.prefixes)} stacks of layers"
            raise recipe.error(where, list(source.layers), problem, "slices need exactly one; merge it with models")
        if not 0 <= start <= end <= checkpoint.stacks.depth or (source.layers is not None and start == end):
            problem = f"{checkpoint.uri} has layers 0 to {checkpoint.stacks.depth}"
            raise recipe.error(f"{where}, {source.model}", [start, end], problem, "give a range within them")
    lengths = [end - start for start, end in spans]
    if len(set(lengths)) > 1:
        raise recipe.error(
            where, dict(zip(models, lengths, strict=True)), "numbers of layers differ", "use equal ranges"
        )
    base = _base_index(recipe, method, part, where)
    _check_count(recipe, method, len(models) - (base is not None), where)
    return _Part(part, opened, tuple(start for start, _ in spans), lengths[0], base)


def _base_index(recipe: Recipe, method: MergeMethod, part: Slice, where: str) -> int | None:
    """Return which source is the base; None where the method has none and treats all alike."""
    model = part.base_model or recipe.base_model
    models = [source.model for source in part.sources]
    if method.base == "unused" or (model is None and method.base == "optional"):
        return None
    if model is None:
        raise recipe.error("base_model", None, f"{method.name} needs a base", "name the model that it starts from")
    if model not in models:
        raise recipe.error(where, models, f"base_model {model} is not among the sources", "add it with its layer_range")
    return models.index(model)


def _check_count(recipe: Recipe, method: MergeMethod, found: int, where: str) -> None:
    if found < method.least or (method.most is not None and found > method.most):
        span = f"{method.least}" if method.least == method.most else f"{method.least} to {method.most or 'any number'}"
        beside = "" if method.base == "unused" else " beside the base"
        problem = f"{method.name} merges {span} models{beside}, not {found}"
        raise recipe.error(where, found, problem, "change the models or the method")


def _check_architectures(checkpoints: list[Checkpoint]) -> None:
    """Refuse models of different kinds and of differently named layers."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        kinds = [checkpoint.config.get("model_type") for checkpoint in (first, other)]
        if None not in kinds and kinds[0] != kinds[1]:
            raise MergeError(f"{other.uri}: model_type {kinds[1]!r}, but {first.uri} is {kinds[0]!r}; merge one kind")


def _steps(recipe: Recipe, method: MergeMethod, parts: list[_Part]) -> Iterator[Step]:
    """Yield what comes before the layers, the layers renumbered from 0, and what comes after them."""
    yield from _ends(recipe, method, parts[0], layers.comes_first)
    layer = 0
    for part in parts:
        for n in range(part.depth):
            position = n / (part.depth - 1) if part.depth > 1 else 1.0
            for prefix, suffix in _keys_of_layer(part, n):
                names = [f"{prefix}{start + n}{suffix}" for start in part.starts]
                yield _step(recipe, method, part, f"{prefix}{layer}{suffix}", names, position)
            layer += 1
    yield from _ends(recipe, method, parts[-1], lambda name: not layers.comes_first(name))


def _keys_of_layer(part: _Part, n: int) -> dict[tuple[str, str], None]:
    """Return (prefix, suffix) of each tensor that any source has in its layer, in the order of the files."""
    places = [
        place
        for checkpoint, start in zip(part.checkpoints, part.starts, strict=True)
        for place in checkpoint.layer(start + n)
        if not place.suffix.endswith(_DERIVED)
    ]
    return dict.fromkeys((place.prefix, place.suffix) for place in places)


def _ends(recipe: Recipe, method: MergeMethod, part: _Part, wanted: Callable[[str], bool]) -> Iterator[Step]:
    """Yield the steps outside the layers, all at position 0 of every gradient.

    A head that no model has stays tied; where one has it, the embedding stands for it in the others.
    """
    outside = [name for c in part.checkpoints for name in c.names() if c.stacks.place(name) is None]
    for name in dict.fromkeys(outside):
        if not wanted(name) or name.endswith(_DERIVED):
            continue
        names = [name] * len(part.checkpoints)
        if layers.is_head(name):
            if all(checkpoint.tied for checkpoint in part.checkpoints):
                continue
            names = [str(c.embedding) if c.tied else name for c in part.checkpoints]
        yield _step(recipe, method, part, name, names, 0.0)


def _step(recipe: Recipe, method: MergeMethod, part: _Part, output: str, names: list[str], position: float) -> Step:
    dtypes, shape = _check_alike(output, part.checkpoints, names)
    refs = [TensorRef(source.model, name) for source, name in zip(part.slice.sources, names, strict=True)]
    if not dtypes[0].is_floating_point:
        return Step(output, shape, COPY, tuple(refs), None, {}, dtypes[0], dtypes[0])
    compute = recipe.dtype or reduce(torch.promote_types, dtypes)
    inputs = [n for n in range(len(refs)) if n != part.base]
    named = [(part.slice.sources[n], names[n]) for n in inputs]
    return Step(
        name=output,
        shape=shape,
        method=method.name,
        inputs=tuple(refs[n] for n in inputs),
        base=None if part.base is None else refs[part.base],
        parameters=bind(recipe, method, part.slice, named, output=output, position=position),
        compute=compute,
        dtype=recipe.out_dtype or compute,
    )


def _check_alike(
    output: str, checkpoints: tuple[Checkpoint, ...], names: list[str]
) -> tuple[list[torch.dtype], tuple[int, ...]]:
    """Return the dtypes and the one shape. Raises where a model lacks the tensor or has another kind of it."""
    having = next(c for c, name in zip(checkpoints, names, strict=True) if name in c.entries)
    for checkpoint, name in zip(checkpoints, names, strict=True):
        if name not in checkpoint.entries:
            raise ArtifactError(
                f"{checkpoint.uri}: no tensor {name!r}, which {having.uri} has; merge models of one kind"
            )
    shapes = [c.shape(name) for c, name in zip(checkpoints, names, strict=True)]
    dtypes = [c.dtype(name) for c, name in zip(checkpoints, names, strict=True)]
    for n in range(1, len(shapes)):
        where = f"{checkpoints[n].uri}: {names[n]}"
        if shapes[n] != shapes[0]:
            problem = f"has shape {list(shapes[n])}, but {list(shapes[0])} in {checkpoints[0].uri}"
            vocabulary = layers.is_head(output) or layers.is_token_embedding(output)
            fix = "their vocabularies differ, resize one model's first" if vocabulary else "merge models of one shape"
            raise MergeError(f"{where} {problem}; {fix}")
        if dtypes[n] != dtypes[0] and not (dtypes[n].is_floating_point and dtypes[0].is_floating_point):
            raise MergeError(f"{where} is {dtypes[n]}, but {dtypes[0]} in {checkpoints[0].uri}; convert one of them")
    return dtypes, shapes[0]
