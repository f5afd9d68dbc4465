"""Random masks that depend on nothing but (seed, tensor name, model, element).

The words come from Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a counter goes
through ten keyed rounds of multiplications, so the words of any element can be computed by themselves, in any order
and by any worker. It is compiled here because it vectorises: 32-bit words at five times the rate of NumPy's
Philox-4x64. Two elements share a word, the second reads it with its halves swapped: each is uniform to 32 bits, and
what one decides tells of the other with a chance of 2**-16 only.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods.arrays import Flat
from phases.evomerge.methods.kernels import compiled

_U64 = np.uint64
_LOW, _SHIFT = _U64(0xFFFFFFFF), _U64(32)
_MULTIPLIERS = _U64(0xD2511F53), _U64(0xCD9E8D57)
_WEYL = _U64(0x9E3779B9), _U64(0xBB67AE85)  # what the key grows by from round to round
_COUNTERS = 128  # in a block: 512 words for 1024 elements
_MOST_MODELS = 64  # bits of the widest word that keeps are noted in


class MaskKey(NamedTuple):
    """What the masks of one merged tensor depend on, beside the index of the model."""

    seed: int
    tensor: str

    def words(self, model: int) -> tuple[np.uint64, np.uint64]:
        """Return the two 32-bit key words for the mask of input `model`."""
        digest = hashlib.sha256(f"{self.seed}\n{model}\n{self.tensor}".encode()).digest()
        return _U64(int.from_bytes(digest[:4], "little")), _U64(int.from_bytes(digest[4:8], "little"))


def draw(
    key: MaskKey, tensors: tuple[Flat, ...], base: Flat, chances: Sequence[NDArray[np.uint64]]
) -> tuple[NDArray[Any], list[list[float]]]:
    """Return which elements of each delta are kept, and (l1 norm of all of it, of what is kept) for each.

    Bit i of the first (elements,) is for model i. `chances` are of 2**32, one for all elements of a model (1,) or one
    for each (elements,).
    """
    if len(tensors) > _MOST_MODELS:
        raise MergeError(f"{len(tensors)} models: masks are drawn for at most {_MOST_MODELS}; merge in two stages")
    kept: NDArray[Any] = np.empty(len(base), np.uint8 if len(tensors) <= 8 else np.uint64)
    keys = tuple(key.words(model) for model in range(len(tensors)))
    norms = np.zeros((len(tensors), 2))
    _draw(tensors, base, keys, tuple(chances), kept, norms)
    return kept, norms.tolist()


def chance(probability: float) -> NDArray[np.uint64]:
    """Return a probability as (1,) chances of 2**32."""
    return np.asarray([round(probability * 2**32)], np.uint64)


def rank_chances(delta: Tensor, density: float, epsilon: float) -> NDArray[np.uint64]:
    """Return (elements,) chances of 2**32 that grow with the rank of a magnitude in its row (of equal ones, the later).

    They go from `density - epsilon` to `density + epsilon`. Rows are along dimension 1; a tensor of fewer dimensions is
    one row. In a row of one element the chance is `density`.
    """
    table = delta.abs().reshape(1, -1) if delta.dim() < 2 else delta.abs().movedim(1, -1)
    rows = table.reshape(-1, table.shape[-1]).numpy()  # (rows, columns)
    order = np.argsort(rows, axis=1, kind="stable") if rows.dtype == np.float64 else _order(rows)
    width = rows.shape[1]
    steps = np.full(1, 0.5) if width == 1 else np.arange(width) / (width - 1)
    by_rank = np.rint((density - epsilon + steps * 2 * epsilon) * 2**32).astype(np.uint64)
    chances = np.empty(rows.shape, np.uint64)
    np.put_along_axis(chances, order, by_rank[None, :], axis=1)
    shaped = chances.reshape(table.shape)
    return np.ascontiguousarray(shaped if delta.dim() < 2 else np.moveaxis(shaped, -1, 1)).reshape(-1)


def _order(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the stable order of each row of magnitudes, by sorting (bits, column) pairs as integers."""
    pairs = rows.view(np.uint32).astype(np.uint64) << _SHIFT | np.arange(rows.shape[1], dtype=np.uint64)
    pairs.sort(axis=1)
    order: NDArray[np.int64] = (pairs & _LOW).astype(np.int64)
    return order


@compiled()
def words(first: int, key_low: Any, key_high: Any, out: NDArray[np.uint32]) -> None:
    """Write the words of counters `first`, `first + 1`, ... to `out` (4, counters)."""
    for j in range(out.shape[1]):
        a, b, c, d = _U64(first + j) & _LOW, _U64(first + j) >> _SHIFT, _U64(0), _U64(0)
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(0))
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(1))
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(2))
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(3))
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(4))
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(5))
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(6))
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(7))
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(8))
        a, b, c, d = _round(a, b, c, d, key_low, key_high, _U64(9))
        out[0, j], out[1, j], out[2, j], out[3, j] = np.uint32(a), np.uint32(b), np.uint32(c), np.uint32(d)


@compiled()
def _round(a: Any, b: Any, c: Any, d: Any, key_low: Any, key_high: Any, index: Any) -> tuple[Any, Any, Any, Any]:
    low, high = (key_low + index * _WEYL[0]) & _LOW, (key_high + index * _WEYL[1]) & _LOW
    first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
    return (second >> _SHIFT) ^ b ^ low, second & _LOW, (first >> _SHIFT) ^ d ^ high, first & _LOW


@compiled()
def _draw(
    tensors: tuple[Flat, ...],
    base: Flat,
    keys: tuple[tuple[Any, Any], ...],
    chances: tuple[NDArray[np.uint64], ...],
    kept: NDArray[Any],
    norms: NDArray[np.float64],
) -> None:
    drawn = np.empty((4, _COUNTERS), np.uint32)
    line = drawn.reshape(-1)
    kept[:] = 0
    for block in range(0, len(base), 2 * len(line)):
        for i in range(len(tensors)):
            words(block // 8, keys[i][0], keys[i][1], drawn)
            for start in range(block, min(block + 2 * len(line), len(base)), len(line)):
                stop = start + len(line)
                limits = chances[i] if len(chances[i]) == 1 else chances[i][start:stop]
                bits = kept[start:stop]
                whole, part = _keep(
                    tensors[i][start:stop], base[start:stop], line, limits, kept.dtype.type(1 << i), bits
                )
                norms[i, 0] += whole
                norms[i, 1] += part
                _swap_halves(line)


@compiled()
def _swap_halves(line: NDArray[np.uint32]) -> None:
    for j in range(len(line)):
        line[j] = (line[j] << np.uint32(16)) | (line[j] >> np.uint32(16))


@compiled({"reassoc"})
def _keep(
    tensor: Flat, base: Flat, line: NDArray[np.uint32], limits: NDArray[np.uint64], bit: Any, bits: NDArray[Any]
) -> tuple[Any, Any]:
    """Set the bit of the elements whose word is below their limit; return the l1 norms of a block."""
    zero, none = tensor.dtype.type(0), bits.dtype.type(0)
    whole, part = zero, zero
    limit = limits[0]
    for j in range(len(tensor)):
        keep = _U64(line[j]) < (limit if len(limits) == 1 else limits[j])
        size = abs(tensor[j] - base[j])
        whole += size
        part += size if keep else zero
        bits[j] |= bit if keep else none
    return whole, part
