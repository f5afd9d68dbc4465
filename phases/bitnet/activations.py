"""Activations in int8, as explicit objects: the same one quantises in training, in the reference and in an export.

`PER_TOKEN` is BitNet's (Ma et al. 2024): one scale for a token. The others have one for each block of columns, which is
what ONNX Runtime's kernels compute with weights in blocks: `BLOCK_128`, and `BLOCK_64` before ternary matrices of few
columns (`block_size`). A model is trained with what it will run with.

Shapes: (..., K) activations, C blocks.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

Name = Literal["block", "per_token"]
MOST = 127
BLOCK: Final = 128  # columns; smaller blocks cost time
_NARROW, _NARROW_COLUMNS = 64, 256  # a block, and the most columns it is for
LEAST = 1e-10  # a block of zeros counts as having this largest value, so that it has a scale


@dataclass(frozen=True)
class Quantised:
    """Integer activations: their product with the scale is the value."""

    codes: Tensor  # (..., C, width), int8
    scale: Tensor  # (..., C, 1), fp32


@dataclass(frozen=True)
class ActivationQuantiser:
    """One scale for each `size` columns; for all of them where that is None."""

    size: int | None

    def quantise(self, x: Tensor) -> Quantised:
        """Return integer activations of `x` (..., K), K padded with zeros to whole blocks."""
        codes, scale = self._blocks(x)
        return Quantised(codes.to(torch.int8), scale)

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` (..., K) as its quantised values, with the gradient of the identity (straight-through)."""
        quantised: Tensor = _StraightThrough.apply(x, self)  # type: ignore[no-untyped-call]
        return quantised

    def values(self, x: Tensor) -> Tensor:
        """Return the quantised values of `x` (..., K), without a gradient."""
        codes, scale = self._blocks(x.detach())
        full = torch.promote_types(x.dtype, torch.float32)  # in fp64 a code times its scale is not rounded
        return codes.to(full).mul_(scale).flatten(-2)[..., : x.shape[-1]].to(x.dtype)

    def _blocks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = self.size or x.shape[-1]
        blocks = F.pad(x.float(), (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
        largest = blocks.abs().amax(-1, keepdim=True).clamp_min_(LEAST)
        # The product with the inverse, as the runtime does it: a division would round some codes to the other side.
        return (blocks * (MOST / largest)).round_().clamp_(-MOST, MOST), largest.div_(MOST)


BLOCK_64, BLOCK_128, PER_TOKEN = ActivationQuantiser(_NARROW), ActivationQuantiser(BLOCK), ActivationQuantiser(None)


def block_size(columns: int, bits: int) -> int:
    """Return the columns of a block: 128, or 64 in ternary matrices of up to 256.

    ONNX Runtime's 2-bit kernels hold and multiply four blocks at once: for 216 columns, 512 in blocks of 128.
    """
    return _NARROW if bits == 2 and columns <= _NARROW_COLUMNS else BLOCK


def quantiser_for(name: Name, columns: int, bits: int) -> ActivationQuantiser:
    """Return the quantiser of that name before a matrix of so many columns and bits."""
    if name == "per_token":
        return PER_TOKEN
    return BLOCK_64 if block_size(columns, bits) == _NARROW else BLOCK_128


class _StraightThrough(Function):
    """The quantised values forward, the identity backward; nothing is saved in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantiser: ActivationQuantiser) -> Tensor:
        return quantiser.values(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
