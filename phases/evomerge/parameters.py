"""The parameters of a merge method for one tensor: which the method has, what the recipe says, and what is allowed."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from phases.errors import ConfigError
from phases.evomerge.methods import METHODS, MergeMethod, Parameter
from phases.evomerge.recipe import Recipe, Scope, Slice, Source, resolve


def known_method(recipe: Recipe) -> MergeMethod:
    """Return the method of a recipe after checking its name and those of all parameters."""
    if (method := METHODS.get(recipe.method)) is None:
        close = get_close_matches(recipe.method, METHODS, n=1)
        fix = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(METHODS)}"
        raise recipe.error("merge_method", recipe.method, "unknown method", fix)
    for part in recipe.slices:
        for source in part.sources:
            _check_scope(recipe, source.scope, method, of_one_model=True)
        _check_scope(recipe, part.scope, method, of_one_model=False)
    for scope in recipe.shared:
        _check_scope(recipe, scope, method, of_one_model=False)
    return method


def key_of(parameter: Parameter) -> str:
    """Return a parameter's name in a recipe: `lambda` for `lambda_`."""
    return parameter.name.rstrip("_")


def bind(
    recipe: Recipe,
    method: MergeMethod,
    part: Slice,
    inputs: Sequence[tuple[Source, str]],
    *,
    output: str,
    position: float,
) -> dict[str, Any]:
    """Return every parameter of `method` for the tensor `output`; those of each model as a tuple along `inputs`.

    `inputs` are the models in order with their tensor's name, which the filters of a model's parameters look at.
    """
    bound: dict[str, Any] = {}
    for parameter in method.parameters:
        if parameter.per_model:
            bound[parameter.name] = tuple(
                _value(recipe, parameter, recipe.scopes(part, source), name, position, source)
                for source, name in inputs
            )
        else:
            bound[parameter.name] = _value(recipe, parameter, recipe.scopes(part), output, position, None)
    return bound


def _value(
    recipe: Recipe, parameter: Parameter, scopes: Iterable[Scope], tensor: str, position: float, source: Source | None
) -> Any:
    key = key_of(parameter)
    value = resolve(recipe, scopes, key, parameter.kind, tensor=tensor, position=position)
    if value is None:
        value = parameter.default
    whose = tensor if source is None else f"{tensor} of {source.model}"
    if value is None:
        unlisted = source is not None and source.scope.where == "base_model"
        fix = (
            "leave base_model out, which this method merges like any other model, or list it" if unlisted else "add it"
        )
        raise ConfigError(
            f"{recipe.file}: parameters.{key}: required by {recipe.method} and missing for {whose}; {fix}"
        )
    low, high = parameter.low, parameter.high
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"from {'...' if low is None else low} to {'...' if high is None else high}"
        raise recipe.error(f"parameters.{key}", value, f"out of range for {whose}", f"give a value {span}")
    return value


def _check_scope(recipe: Recipe, scope: Scope, method: MergeMethod, *, of_one_model: bool) -> None:
    known = {key_of(parameter): parameter for parameter in method.parameters}
    for key in scope.settings:
        where = f"{scope.where}.{key}"
        if key in method.ignored:
            continue
        if key not in known:
            close = get_close_matches(key, known, n=1)
            fix = f"did you mean {close[0]}?" if close else f"{recipe.method} has {', '.join(known) or 'none'}"
            raise ConfigError(f"{recipe.file}: {where}: unknown parameter of {recipe.method}; {fix}")
        if of_one_model and not known[key].per_model:
            raise ConfigError(f"{recipe.file}: {where}: the same for all models; move it to the slice or the top level")
