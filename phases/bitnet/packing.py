"""Codes as bytes: 2, 4 or 8 bits each, or five trits to a byte.

The 2-bit form is ONNX Runtime's: code + 2 of K consecutive columns, lowest bits first, in blocks of columns. Base 3
is for archives: 1.6 bits a weight, 3^5 = 243 values to a byte, and a product and an addition per digit to read it back.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phases.errors import ArtifactError

Codes = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]
TRITS = 5  # in a byte
_POWERS = 3 ** np.arange(TRITS, dtype=np.int64)


def pack_bits(codes: Codes, bits: int, block: int) -> Bytes:
    """Pack (N, K) codes into (N, ceil(K / block), block * bits / 8) bytes, offset by 2^(bits-1), padded with code 0."""
    zero = 1 << (bits - 1)
    rows, columns = codes.shape
    offset = np.full((rows, -(-columns // block) * block), zero, np.uint8)
    offset[:, :columns] = codes.astype(np.int16) + zero
    parts = offset.reshape(rows, -1, block * bits // 8, 8 // bits)
    packed = np.zeros(parts.shape[:-1], np.uint8)
    for place in range(8 // bits):
        packed |= parts[..., place] << np.uint8(place * bits)
    return packed


def unpack_bits(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return the (N, K) int8 codes that `pack_bits` packed, on the device of `packed` (N, ..., bytes), uint8."""
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    offset = (packed.flatten(1).unsqueeze(-1) >> places) & ((1 << bits) - 1)
    return (offset.flatten(1)[:, :columns].to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def pack_trits(codes: Codes) -> bytes:
    """Pack codes of any shape, in order, five to a byte; the last byte is filled up with zeros."""
    trits = codes.reshape(-1).astype(np.int64) + 1
    padded = np.ones(-(-len(trits) // TRITS) * TRITS, np.int64)
    padded[: len(trits)] = trits
    return (padded.reshape(-1, TRITS) @ _POWERS).astype(np.uint8).tobytes()


def unpack_trits(data: bytes, shape: tuple[int, ...]) -> Codes:
    """Return the codes of `shape`. Raises `ArtifactError` where the bytes are too few, too many or not base 3."""
    count = int(np.prod(shape))
    values = np.frombuffer(data, np.uint8)
    if len(values) != -(-count // TRITS) or (len(values) and int(values.max()) >= 3**TRITS):
        raise ArtifactError(f"packed trits: {len(values)} bytes do not hold {count} weights; the file is damaged")
    digits = values[:, None].astype(np.int64) // _POWERS % 3 - 1
    return digits.reshape(-1)[:count].reshape(shape).astype(np.int8)
