"""One call for every method: check, compute, check again.

float16 and bfloat16 inputs are merged in float32 and rounded once at the end; mergekit rounds its task vectors to the
type of the inputs at every step, so there the last bits differ.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods.arrays import promoted_type, working_type
from phases.evomerge.methods.masks import MaskKey
from phases.evomerge.methods.rails import check_inputs, check_result
from phases.evomerge.methods.registry import METHODS, MergeMethod, Parameter

Value: TypeAlias = float | int | bool | Sequence[float]


def merge(
    method: str,
    tensors: Sequence[Tensor],
    *,
    base: Tensor | None = None,
    key: MaskKey = MaskKey(0, ""),  # noqa: B008 - a tuple of constants
    guard: float | None = 4.0,
    **parameters: Value,
) -> Tensor:
    """Merge tensors of one shape by the method of that name, and return one of the type that they promote to.

    `key` names the tensor, in errors and for the random masks. A parameter per model is one number for all or a
    sequence of one for each of `tensors`. `guard` is the largest distance of the result from the base (from the mean
    where the method has none), in multiples of the furthest input's; None allows any. Inputs are never written to.
    Raises `MergeError` for unknown methods and parameters, values out of range, inputs that do not fit each other,
    and results that are not finite or too far out.
    """
    if (chosen := METHODS.get(method)) is None:
        raise MergeError(f"merge method {method!r} is not known; choose one of {', '.join(METHODS)}")
    try:
        return _merge(chosen, tensors, base if chosen.base != "unused" else None, key, guard, parameters)
    except MergeError as error:
        raise error.inside(key.tensor, method) from None


def _merge(
    method: MergeMethod,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    key: MaskKey,
    guard: float | None,
    parameters: Mapping[str, Value],
) -> Tensor:
    _check_count(method, len(tensors), base)
    inputs = [*tensors] if base is None else [*tensors, base]
    check_inputs(inputs)
    settings = _bind(method, parameters, len(tensors))
    if not tensors[0].numel():
        return tensors[0].clone()
    kind = working_type(inputs)
    given = [tensor.detach().to(kind) for tensor in tensors]
    origin = None if base is None else base.detach().to(kind)
    context: list[Any] = [] if method.base == "unused" else [origin]
    if method.random:
        context.append(key)
    if method.guarded:
        merged = method.function(given, *context, **settings, guard=guard)
    else:
        merged = method.function(given, *context, **settings)
        check_result(merged, given, origin, None if _is_tame(method, settings) else guard)
    result = merged.to(promoted_type(inputs))
    if result.dtype == torch.float16 and not bool(result.isfinite().all()):
        raise MergeError(f"the result reaches {merged.abs().max():.4g}, more than float16 holds; merge as bfloat16")
    return result


def _is_tame(method: MergeMethod, settings: Mapping[str, Any]) -> bool:
    """Return whether the result is a mean of the inputs, which cannot lie further out than they do, or a copy."""
    mean = method.name == "linear" and settings["normalize"] and min(settings["weight"]) >= 0
    return mean or method.name == "passthrough"


def _check_count(method: MergeMethod, count: int, base: Tensor | None) -> None:
    if count < method.least or (method.most is not None and count > method.most):
        wanted = (
            f"{method.least}" if method.most == method.least else f"{method.least} to {method.most or 'any number'}"
        )
        raise MergeError(f"{count} inputs without the base; give {wanted}")
    if method.base == "required" and base is None:
        raise MergeError("it needs a base; give the model that the inputs were trained from")


def _bind(method: MergeMethod, given: Mapping[str, Value], models: int) -> dict[str, Any]:
    """Return every parameter of the method, checked, with defaults filled in and one value per model where it has."""
    known = [parameter.name for parameter in method.parameters]
    if unknown := sorted(set(given) - set(known) - set(method.ignored)):
        raise MergeError(f"parameter {unknown[0]!r} is not known; it has {', '.join(known) or 'none'}")
    return {parameter.name: _value(parameter, given.get(parameter.name), models) for parameter in method.parameters}


def _value(parameter: Parameter, given: Value | None, models: int) -> Any:
    value = parameter.default if given is None else given
    if value is None:
        raise MergeError(f"parameter {parameter.name!r} ({parameter.meaning}) is missing; give it")
    if not parameter.per_model:
        return _checked(parameter, value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        value = [value] * models
    if len(value) != models:
        raise MergeError(f"{parameter.name} = {list(value)}: {len(value)} values for {models} inputs; give each one")
    return [_checked(parameter, each) for each in value]


def _checked(parameter: Parameter, value: Any) -> Any:
    """Return a value of the parameter's type within its range."""
    if type(value) not in {"bool": (bool,), "int": (int,), "float": (float, int)}[parameter.kind]:
        raise MergeError(f"{parameter.name} = {value!r}: not a {parameter.kind}; give one")
    low = -math.inf if parameter.low is None else parameter.low
    high = math.inf if parameter.high is None else parameter.high
    if not (low <= value <= high) or math.isinf(value):
        raise MergeError(f"{parameter.name} = {value!r}: {parameter.meaning}; give a number from {low:g} to {high:g}")
    return value
