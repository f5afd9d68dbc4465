"""Writing a packed model as one ONNX file that needs nothing beside it."""

import base64
from pathlib import Path

from safetensors.torch import save

from phases import storage
from phases.bitnet.memory_writer import writer_tensors
from phases.bitnet.onnx_cache import cache_steps
from phases.bitnet.onnx_export import to_onnx
from phases.bitnet.packed import PackedModel


def write_onnx(model: PackedModel, path: Path, *, exact: bool = False) -> int:
    """Write the file and return its size in bytes."""
    metadata = {}
    if model.architecture.titan is not None:
        metadata["memory"] = base64.b64encode(save(writer_tensors(model))).decode()
    steps = None if exact else cache_steps(model)
    data = to_onnx(model, exact=exact, cache_steps=steps, metadata=metadata).SerializeToString()
    storage.write_bytes(str(path), data)
    return len(data)
