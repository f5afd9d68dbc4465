"""From a torch module to an ONNX file of any batch and length, checked against torch before it gets its name.

torch.onnx.export with dynamo traces the module and translates what it finds, loops (`while_loop`) included. Axes that
may have any size are named; torch takes a size of 0 or 1 for a constant, so examples need at least 2 there, though the
file then runs with 1, and caches with 0. The file is run on the examples, and on other sizes, and must compute what
torch does.
"""

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from phases import storage
from phases.baking.optimise.session import SessionSettings, open_session
from phases.errors import ArtifactError, ConfigError, NumericalError

OPSET = 20
TOLERANCE = 1e-4  # of the largest output
Examples = Mapping[str, Tensor]
Dynamic = Mapping[str, Mapping[int, str]]  # input -> axis -> name of its size


def export_module(
    module: nn.Module, examples: Examples | Sequence[Tensor], path: Path, dynamic: Dynamic | None = None
) -> None:
    """Write `module`, in evaluation mode, as the ONNX file `path`.

    `examples` are inputs of its `forward`, in order or by name. Inputs that name an axis alike have one size there.
    Raises `ConfigError` for examples that cannot serve, `NumericalError` for a weight that is not finite, and
    `ArtifactError` where torch cannot export the module, or the file does not compute what the module does.
    """
    named, dynamic = _named(module, examples), dynamic or {}
    require_exportable(module, named, dynamic)
    proto = to_onnx(module, named, dynamic)
    tried = [named, *(_resized(named, dynamic, more) for more in (1, None) if dynamic)]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        data = serialised(proto)
        file.write_bytes(data)
        for inputs in tried:
            _check(file, module, inputs)
    storage.write_bytes(str(path), data)


def to_onnx(
    module: nn.Module | torch.export.ExportedProgram,
    examples: Examples,
    dynamic: Dynamic,
    outputs: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Return a module's graph. Raises `ArtifactError` where torch cannot export it."""
    if importlib.util.find_spec("onnxscript") is None:
        raise ConfigError.of("onnxscript", None, "not installed, and torch exports with it", "pip install onnxscript")
    shapes = {name: dict(dynamic.get(name, {})) for name in examples}
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                (),
                kwargs=dict(examples),
                dynamo=True,
                dynamic_shapes=None if isinstance(module, torch.export.ExportedProgram) else shapes,
                opset_version=OPSET,
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # tracing runs the module's own code, which may raise anything
        fix = "branch on sizes and not on values, or use torch.cond and while_loop"
        raise ArtifactError(f"torch cannot export {_title(module)} ({_cause(error)}); {fix}") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


def serialised(proto: onnx.ModelProto) -> bytes:
    """Return a model's bytes. Raises `ArtifactError` for those that a single ONNX file cannot hold."""
    try:
        data: bytes = proto.SerializeToString()
    except ValueError as error:
        raise ArtifactError(f"{proto.graph.name}: over 2 GB, which no single ONNX file holds") from error
    return data


def require_exportable(module: nn.Module, examples: Examples, dynamic: Dynamic) -> None:
    """Raise `ConfigError` or `NumericalError` for what cannot give a sound file."""
    if module.training:
        raise ConfigError.of("module", _title(module), "in training mode", "call its eval()")
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NumericalError(f"weight {name} has values that are not finite")
    sizes = dict[str, int]()
    for name, axes in dynamic.items():
        if name not in examples:
            raise ConfigError.of("dynamic", name, "no input", f"inputs are {', '.join(examples)}")
        for axis, size in axes.items():
            shape = tuple(examples[name].shape)
            if not 0 <= axis < len(shape):
                raise ConfigError.of("dynamic", f"{name}, axis {axis}", f"its shape is {shape}", "name one it has")
            if shape[axis] < 2:
                fix = "give an example with at least 2; the file then takes any size"
                raise ConfigError.of("examples", f"{name} {shape}", f"axis {axis} would be fixed", fix)
            if sizes.setdefault(size, shape[axis]) != shape[axis]:
                problem = f"{size} is {sizes[size]} elsewhere"
                raise ConfigError.of("examples", f"{name} {shape}", problem, "give it one size")


def _named(module: nn.Module, examples: Examples | Sequence[Tensor]) -> Examples:
    """Return examples by name. Raises `ConfigError` where `forward` does not take them."""
    try:
        bound = inspect.signature(module.forward).bind(
            *(() if isinstance(examples, Mapping) else examples), **(examples if isinstance(examples, Mapping) else {})
        )
    except TypeError as error:
        raise ConfigError.of("examples", _title(module), str(error), "give what its forward takes") from error
    named = bound.arguments
    if wrong := [name for name, value in named.items() if not isinstance(value, Tensor)]:
        raise ConfigError.of("examples", wrong[0], "no tensor", "give tensors, each for a parameter of its own")
    return named


def _resized(examples: Examples, dynamic: Dynamic, more: int | None) -> Examples:
    """Return examples with every named axis longer by `more`, by repeating what they hold; or of size 1."""
    resized = dict(examples)
    for name, axes in dynamic.items():
        for axis in axes:
            size = resized[name].shape[axis]
            index = torch.arange(1 if more is None else size + more) % size
            resized[name] = resized[name].index_select(axis, index)
    return resized


def _check(file: Path, module: nn.Module, inputs: Examples) -> None:
    """Raise `ArtifactError` where the file does not compute what the module does."""
    sizes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
    try:
        with torch.no_grad():
            wanted = [x for x in pytree.tree_leaves(module(**inputs)) if isinstance(x, Tensor)]
    except Exception as error:  # the module's own code, which may raise anything
        fix = "leave out of `dynamic` what has to keep its size"
        raise ArtifactError(f"{_title(module)} itself cannot take {sizes} ({_cause(error)}); {fix}") from error
    feeds = {name: value.numpy() for name, value in inputs.items()}
    compare(open_session(file, SessionSettings()).run(None, feeds), wanted, sizes)


def compare(found: Sequence[Any], wanted: Sequence[Tensor], what: str) -> None:
    """Raise `ArtifactError` where outputs differ by more than the tolerance; `what` was read."""
    if len(found) != len(wanted):
        raise ArtifactError(f"of {what} the file makes {len(found)} outputs and torch {len(wanted)}")
    for place, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        if ours.shape != tuple(theirs.shape):
            raise ArtifactError(f"of {what} the file makes output {place} {ours.shape}, torch {tuple(theirs.shape)}")
        reference = theirs.double().numpy()
        if not np.allclose(ours, reference, rtol=0, atol=TOLERANCE * max(1.0, np.abs(reference).max(initial=0))):
            gap = np.abs(ours - reference).max()
            raise ArtifactError(f"of {what} the file makes an output {place} that is off torch's by {gap:.2g}")


def _title(module: object) -> str:
    return type(module).__name__


def _cause(error: BaseException) -> str:
    """Return the first line of the innermost error, which says what it was that torch met."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
