"""What a text costs without a neural network, in bits per byte: unigram, 5-gram and xz.

A model's bits per byte mean something only beside these, measured on the same bytes.
"""

import lzma

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint64]


def unigram_bits_per_byte(train: bytes, text: bytes) -> float:
    """Return the cross-entropy of `text` under the byte frequencies of `train`, with one added to each count."""
    counts = np.bincount(np.frombuffer(train, np.uint8), minlength=256) + 1.0
    bits = -np.log2(counts / counts.sum())
    return float(bits[np.frombuffer(text, np.uint8)].mean())


def ngram_bits_per_byte(train: bytes, text: bytes, order: int = 5) -> float:
    """Return the cross-entropy of `text` under a byte n-gram model with Witten-Bell smoothing (1991, method C).

    P_n(c | h) = (N(hc) + T(h) P_{n-1}(c | h')) / (N(h) + T(h)), where T(h) counts the different bytes seen after h.
    """
    seen, asked = np.frombuffer(train, np.uint8), np.frombuffer(text, np.uint8)
    probability = np.full(len(asked), 1 / 256)
    for n in range(1, order + 1):
        grams, counts = np.unique(_codes(seen, n), return_counts=True)
        histories, first = np.unique(grams >> np.uint64(8), return_index=True)
        totals = np.add.reduceat(counts, first)
        kinds = np.diff(np.append(first, len(grams)))
        code = _codes(asked, n)
        hits = _lookup(grams, counts, code)
        total = _lookup(histories, totals, code >> np.uint64(8))
        kind = _lookup(histories, kinds, code >> np.uint64(8))
        tail = probability[n - 1 :]
        probability[n - 1 :] = np.where(total > 0, (hits + kind * tail) / np.maximum(total + kind, 1), tail)
    return float(-np.log2(probability).mean())


def xz_bits_per_byte(text: bytes) -> float:
    """Return the size of the text under `xz -9e`, by itself."""
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def _codes(data: Bytes, n: int) -> Codes:
    """Return each n-gram (n <= 8) as one integer, the last byte lowest."""
    length = len(data) - n + 1
    code = np.zeros(max(length, 0), np.uint64)
    for offset in range(n):
        code = (code << np.uint64(8)) | data[offset : offset + length].astype(np.uint64)
    return code


def _lookup(keys: Codes, values: npt.NDArray[np.int64], wanted: Codes) -> npt.NDArray[np.int64]:
    """Return the value of each wanted key, 0 where it is absent; `keys` are sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
