"""Writing a packed model as one ONNX file that needs nothing beside it."""

from pathlib import Path

from phases import storage
from phases.bitnet.cache_steps import cache_steps
from phases.bitnet.onnx_export import to_onnx
from phases.bitnet.packed import PackedModel


def write_onnx(model: PackedModel, path: Path, *, exact: bool = False) -> int:
    """Write the file and return its size in bytes."""
    steps = None if exact else cache_steps(model)
    data: bytes = to_onnx(model, exact=exact, cache_steps=steps).SerializeToString()
    storage.write_bytes(str(path), data)
    return len(data)
