"""Heads as `GroupQueryAttention` takes them: of a width that is a multiple of 16.

Narrower ones are filled up with zeros behind each of the two halves that rotation pairs: they add nothing to a score,
and what they mix is 0 and left out.

Shapes: K head dimension, P the padded one, D columns.
"""

from dataclasses import replace

import torch
from torch import Tensor

from phases.bitnet.packed import Matrix
from phases.bitnet.ternary import TernaryTensor

_MULTIPLE = 16  # of which a width has to be a multiple for the node to rotate


def padded_width(width: int) -> int:
    """Return the least width, K or more, that the node takes."""
    return -(-width // _MULTIPLE) * _MULTIPLE


def unpadded(width: int, heads: int) -> Tensor:
    """Return where the values of `heads` heads, one behind the other, stand among the padded ones, (heads * K,)."""
    padded = padded_width(width)
    value, half = torch.arange(width), width // 2
    inside = torch.where(value < half, value, value + (padded // 2 - half))
    return (padded * torch.arange(heads)[:, None] + inside).flatten()


def pad_heads(matrix: Matrix, width: int) -> Matrix:
    """Return a matrix (heads * K, D) that makes heads with rows of zeros in between, (heads * P, D)."""
    if isinstance(matrix, Tensor):
        return pad_rows(matrix, width)
    by_tensor = isinstance(matrix, TernaryTensor) and matrix.layout == "tensor"
    scale = matrix.scale if by_tensor else pad_rows(matrix.scale, width)
    return replace(matrix, codes=pad_rows(matrix.codes, width), scale=scale)


def pad_rows(rows: Tensor, width: int) -> Tensor:
    """Return rows (heads * K, ...) with zeros in between, (heads * P, ...)."""
    heads = len(rows) // width
    out = rows.new_zeros(heads * padded_width(width), *rows.shape[1:])
    out[unpadded(width, heads)] = rows
    return out
