"""Programs that `torch.export.save` wrote (.pt2), as ONNX files.

A .pt2 may hold pickled objects, and loading one of those runs whatever it says; such files are refused. What is left is
still a program: open those of people you trust.
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from phases import storage
from phases.baking.optimise.export import compare, serialised, to_onnx
from phases.baking.optimise.session import Feeds, SessionSettings, open_session
from phases.errors import ArtifactError, ConfigError, NumericalError


def open_program(path: Path) -> torch.export.ExportedProgram:
    """Load a program. Raises `ArtifactError` for a file that is none, or that holds pickled objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                _require_plain(f"{path}: {name}", archive.read(name))
    except (OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path}: not a program of torch.export.save ({error})") from error
    try:
        return torch.export.load(path)
    except Exception as error:  # of a torn archive, torch raises whatever it trips over
        cause = (str(error).splitlines() or [""])[0][:200]
        raise ArtifactError(f"{path}: not a program that torch {torch.__version__} can load ({cause})") from error


def export_program(program: torch.export.ExportedProgram, path: Path) -> Callable[[Feeds], object]:
    """Write a program as the ONNX file `path` and return what runs it in torch on the file's inputs.

    Raises `ArtifactError` where torch cannot translate it, or the file does not compute what it does on its examples.
    """
    for name, tensor in program.state_dict.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NumericalError(f"weight {name} has values that are not finite")
    leaves = pytree.tree_leaves(program.example_inputs)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        fix = "export a module whose inputs all are tensors, and keep them"
        raise ConfigError.of("model", "example inputs", "missing, or no tensors", fix)
    data = serialised(to_onnx(program, {}, {}))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(data)
        session = open_session(file, SessionSettings())
        names = [each.name for each in session.get_inputs()]
        feeds = {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}
        run = _runner(program, names)
        compare(session.run(None, feeds), list(pytree.tree_leaves(run(feeds))), "its examples")
    storage.write_bytes(str(path), data)
    return run


def _runner(program: torch.export.ExportedProgram, names: list[str]) -> Callable[[Feeds], object]:
    module, spec = program.module(), program.call_spec.in_spec
    assert spec is not None

    @torch.no_grad()
    def run(feeds: Feeds) -> object:
        args, kwargs = pytree.tree_unflatten([torch.from_numpy(feeds[name]) for name in names], spec)
        return module(*args, **kwargs)

    return run


def _require_plain(name: str, data: bytes) -> None:
    """Raise `ArtifactError` where a member of an archive is, or points to, a pickle of more than tensors."""
    file = name.rpartition("/")[2]
    refusal = ArtifactError(f"{name} is pickled, which can run any code; save the program without custom objects")
    if file.startswith(("custom_obj", "opaque_obj")):
        raise refusal
    if file.endswith(".json") and b'"use_pickle"' in data:
        config = json.loads(data).get("config", {})
        if any(entry.get("use_pickle") for entry in config.values()):
            raise refusal
    if file.endswith(".pt") and data:
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except Exception as error:  # where this fails in any way, torch.export.load would unpickle without limits
            raise refusal from error
