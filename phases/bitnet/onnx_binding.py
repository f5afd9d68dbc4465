"""What every stream over an exported file shares: ids that are checked, memory that is bound, rows read from the file.

Shapes: T tokens, V vocabulary, K columns of the embedding.
"""

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from phases.bitnet.activations import BLOCK
from phases.bitnet.onnx_map import Rows
from phases.bitnet.packing import unpack_bits
from phases.errors import ArtifactError

Floats = npt.NDArray[np.floating[Any]]  # fp32, and in exact files fp64
Ints = npt.NDArray[np.int64]


@dataclass
class Read:
    """What a model made of tokens: `logits` (T, V) of those that follow, and the ponder steps (T) that each took."""

    logits: Floats
    steps: Ints


class StoredRows:
    """The rows of an embedding, read from the file, which stays open."""

    def __init__(self, path: Path, rows: Rows) -> None:
        self.name, self._rows = rows.look_up.output, rows
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._scales = np.frombuffer(os.pread(self._file, 2 * rows.vocabulary, rows.scales), np.float16)[:, None]
        floats: type[np.floating[Any]] = np.float64 if rows.look_up.exact else np.float32
        every, bits = torch.arange(256, dtype=torch.uint8)[:, None], rows.look_up.bits
        self._codes: Floats = unpack_bits(every, bits, 8 // bits).numpy().astype(floats)  # of each byte

    def __call__(self, ids: Ints) -> Floats:
        """Return the rows (T, K) of tokens, as the graph would look them up."""
        width, start, look_up = self._rows.width, self._rows.codes, self._rows.look_up
        stored = b"".join([os.pread(self._file, width, start + width * token) for token in ids.tolist()])
        codes = self._codes[np.frombuffer(stored, np.uint8)].reshape(len(ids), -1)  # of each byte in turn
        if look_up.exact:
            codes = codes.reshape(len(ids), -1, BLOCK)[..., :-1].reshape(len(ids), -1)
        rows: Floats = codes[:, : look_up.columns] * self._scales[ids]
        return rows


def checked(tokens: list[int], vocab_size: int) -> Ints:
    """Return ids (T,). Raises `ArtifactError` where there are none, or one is beyond the vocabulary."""
    if not tokens or min(tokens) < 0 or max(tokens) >= vocab_size:
        raise ArtifactError(f"tokens must be 0 to {vocab_size - 1}, and at least one")
    return np.array(tokens, np.int64)


def rotation(positions: npt.NDArray[Any], width: int, theta: float) -> tuple[Floats, Floats]:
    """Return the cosines and sines (T, width / 2), fp64, that turn heads of a width at positions (T,)."""
    angles = positions[:, None] * theta ** (-np.arange(0, width, 2) / width)
    return np.cos(angles), np.sin(angles)


def bind(binding: ort.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    """Bind an input by its address: what is written into the array later is seen."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    """Have an output written into the array."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
