"""Packed models as files: one to run in torch, with 2 bits a weight, and one to keep, with base-3 trits, compressed.

Both are safetensors behind a JSON header and hold codes and scales as they are stored; nothing is derived again on
loading. The archive is for transport: five trits to a byte and zstd over all, unpacked once before use.
"""

import json
from typing import Literal

import numpy as np
import torch
import zstandard
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from phases.bitnet.packed import Architecture, Matrix, PackedModel
from phases.bitnet.packing import pack_bits, pack_trits, unpack_bits, unpack_trits
from phases.bitnet.rows import RowTensor
from phases.bitnet.ternary import TernaryTensor
from phases.errors import ArtifactError

Kind = Literal["torch", "archive"]
_BLOCK = 4  # codes; a row is padded to whole bytes and no further
_LEVEL = 19  # of zstd
_LARGEST = 1 << 34  # bytes that an archive may unpack to


def to_bytes(model: PackedModel, kind: Kind) -> bytes:
    """Return the content of a `torch` file (2 bits per ternary weight) or of an `archive` (1.6, and zstd)."""
    tensors, entries = dict[str, Tensor](), dict[str, dict[str, object]]()
    for name, matrix in model.matrices.items():
        if isinstance(matrix, Tensor):
            tensors[name] = matrix.contiguous()
            continue
        codes, bits = matrix.codes.numpy(), matrix.bits
        as_trits = kind == "archive" and bits == 2
        data = np.frombuffer(pack_trits(codes), np.uint8) if as_trits else pack_bits(codes, bits, _BLOCK)
        tensors[name], tensors[f"{name}.scale"] = torch.from_numpy(data.copy()), matrix.scale.half()
        entries[name] = {"shape": list(codes.shape), "bits": bits}
    vectors = {name: vector.half() if kind == "archive" else vector for name, vector in model.vectors.items()}
    tensors |= {f"vector.{name}": vector.contiguous() for name, vector in vectors.items()}
    header = {"kind": kind, "architecture": model.architecture.model_dump(mode="json"), "matrices": entries}
    content = save(tensors, metadata={"forge": json.dumps(header)})
    return zstandard.compress(content, _LEVEL) if kind == "archive" else content


def from_bytes(data: bytes) -> PackedModel:
    """Read either kind back. Raises `ArtifactError` for anything else, torn files included."""
    try:
        if data[:4] == zstandard.MAGIC_NUMBER.to_bytes(4, "little"):
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=_LARGEST)
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["forge"])
        architecture = Architecture.model_validate(header["architecture"])
        entries = header["matrices"]
    except (KeyError, ValueError, SafetensorError, ValidationError, zstandard.ZstdError) as error:
        raise ArtifactError(f"not a packed model, or torn ({error}); export it again") from error
    vectors = {name.removeprefix("vector."): t.float() for name, t in tensors.items() if name.startswith("vector.")}
    matrices = dict[str, Matrix]()
    for name, tensor in tensors.items():
        if name in entries:
            matrices[name] = _matrix(tensor, tensors[f"{name}.scale"], entries[name], header["kind"])
        elif not name.startswith("vector.") and name.removesuffix(".scale") not in entries:
            matrices[name] = tensor
    return PackedModel(architecture, matrices, vectors)


def _matrix(data: Tensor, scale: Tensor, entry: dict[str, object], kind: Kind) -> Matrix:
    shape, bits = entry["shape"], entry["bits"]
    if not (isinstance(shape, list) and len(shape) == 2 and bits in (2, 4, 8)):
        raise ArtifactError(f"packed matrix of shape {shape} and {bits} bits: damaged header")
    if kind == "archive" and bits == 2:
        codes = torch.from_numpy(unpack_trits(data.numpy().tobytes(), (int(shape[0]), int(shape[1]))))
    else:
        codes = unpack_bits(data, bits, int(shape[1]))
    if bits == 2:
        return TernaryTensor(codes, scale.float(), "row" if len(scale) == shape[0] else "tensor")
    return RowTensor(codes, scale.float(), 4 if bits == 4 else 8)
