"""Matrices in int8 or int4 with a scale for each row: embeddings, heads and what ternary weights would break.

Ternary embeddings make a model fail; int8 rows cost nothing that can be measured and int4 rows little once they are in
the training loop. Codes are symmetric, so 0 is exact and no zero point is stored.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from phases.errors import ConfigError, NumericalError

Bits = Literal[4, 8]
_CANDIDATES = 12  # scales tried per row at 4 bits
_LEAST_SHARE = 0.6  # of the largest |w|, the smallest scale tried


@dataclass(frozen=True)
class RowTensor:
    """A matrix `scale * codes` of `bits` bits."""

    codes: Tensor  # (N, K), int8 in [-(2^(bits-1) - 1), 2^(bits-1) - 1]
    scale: Tensor  # (N, 1), fp32 that fp16 can hold
    bits: Bits

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.int8 or tuple(self.scale.shape) != (len(self.codes), 1):
            found = f"{self.codes.dtype}, {tuple(self.scale.shape)}"
            raise ConfigError.of("row tensor", found, "not int8 codes with a scale per row", "store both as quantised")

    def dequantise(self) -> Tensor:
        """Return the matrix in fp32."""
        return self.codes * self.scale

    @property
    def row_scale(self) -> Tensor:
        """The scale of each row, (N, 1)."""
        return self.scale


def quantise_rows(weight: Tensor, bits: Bits) -> RowTensor:
    """Quantise a matrix (N, K), each row by its largest |w| at 8 bits.

    At 4 bits that wastes codes on outliers, so each row takes, of 12 scales, the one with the least squared error.
    Raises `NumericalError` for weights that are not finite or beyond fp16.
    """
    w, most = weight.detach().float(), 2 ** (bits - 1) - 1
    largest = w.abs().amax(1, keepdim=True)
    if not bool((largest <= most * torch.finfo(torch.float16).max).all()):
        raise NumericalError("weights to quantise are not finite or beyond fp16; roll back to a checkpoint")
    shares = [1.0] if bits == 8 else torch.linspace(_LEAST_SHARE, 1, _CANDIDATES).tolist()
    best, error = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for share in shares:
        scale = (largest * (share / most)).half().float()
        off = (_codes(w, scale, most) * scale - w).square_().sum(1, keepdim=True)
        best, error = torch.where(off < error, scale, best), torch.minimum(off, error)
    return RowTensor(_codes(w, best, most).to(torch.int8), best, bits)


def _codes(w: Tensor, scale: Tensor, most: int) -> Tensor:
    return torch.where(scale > 0, w / scale, 0.0).round_().clamp_(-most, most)
