"""Running a packed model in torch: weights stay in 2, 4 or 8 bits and are unpacked where they are used.

For machines without the ONNX runtime, for GPUs and for tests. On a CPU the unpacking makes it slower than fp32; it is
small, not fast. Products are of integers with integers, exactly as the reference defines them, on a GPU by its int8
tensor cores.
"""

import torch
from torch import Tensor, nn

from phases.bitnet.activations import ActivationQuantiser, quantiser_for
from phases.bitnet.linear import QuantisedNorm, QuantisedTensor
from phases.bitnet.packed import PackedModel
from phases.bitnet.packing import pack_bits, unpack_bits
from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError

_BLOCK = 4
_LEAST_ROWS = 17


class PackedWeight(nn.Module):
    """A matrix in packed bytes; as an embedding it maps ids to rows."""

    packed: Tensor
    scale: Tensor

    def __init__(self, matrix: QuantisedTensor) -> None:
        super().__init__()
        self.bits = matrix.bits
        self.shape = tuple(matrix.codes.shape)
        self.register_buffer("packed", torch.from_numpy(pack_bits(matrix.codes.numpy(), self.bits, _BLOCK)))
        self.register_buffer("scale", matrix.row_scale.half().contiguous())

    def codes(self, rows: Tensor | None = None) -> Tensor:
        """Return the codes (N, K), int8, or those of some rows."""
        return unpack_bits(self.packed if rows is None else self.packed[rows], self.bits, self.shape[1])

    @property
    def weight(self) -> Tensor:
        """The matrix in full, for a head that multiplies with it."""
        return self.codes() * _wide(self.scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ids (...) to rows (..., D)."""
        flat = tokens.flatten()
        rows: Tensor = (self.codes(flat) * _wide(self.scale[flat])).unflatten(0, tokens.shape)
        return rows


class PackedLinear(nn.Module):
    """A linear layer of packed weights and integer products."""

    bias: Tensor | None

    def __init__(self, matrix: QuantisedTensor, bias: Tensor | None, activations: ActivationQuantiser) -> None:
        super().__init__()
        self.stored, self.activations = PackedWeight(matrix), activations
        self.in_features = matrix.codes.shape[1]
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        product = integer_product_int8 if x.is_cuda else integer_product
        y = product(x, self.stored.codes(), self.activations) * _wide(self.stored.scale).T
        return y if self.bias is None else y + self.bias


def integer_product(x: Tensor, codes: Tensor, activations: ActivationQuantiser) -> Tensor:
    """Return `x` (..., K) quantised, times the integer `codes` (N, K), before the weights' scale: (..., N).

    Sums of each block are whole numbers below 2^24, so fp32 holds them exactly whatever the order of summation. They
    are scaled in the type of `x`.
    """
    quantised = activations.quantise(x)  # (..., C, width)
    width = quantised.codes.shape[-1]
    blocks = nn.functional.pad(codes, (0, -codes.shape[1] % width)).unflatten(1, (-1, width)).float()
    sums = torch.einsum("...cw,ncw->...cn", quantised.codes.float(), blocks)
    return (sums.to(_wide(x).dtype) * quantised.scale).sum(-2)


def integer_product_int8(x: Tensor, codes: Tensor, activations: ActivationQuantiser) -> Tensor:
    """Return the same from products in int8 that are summed in int32, block by block.

    Rows and columns are filled up to what CUDA's int8 kernels take: 17 rows or more, and multiples of 8.
    """
    quantised = activations.quantise(x)
    rows, width = quantised.codes.flatten(0, -3), quantised.codes.shape[-1]
    count, even = len(rows), width + -width % 8
    rows = nn.functional.pad(rows, (0, even - width, 0, 0, 0, max(0, _LEAST_ROWS - count)))  # (R, C, even)
    blocks = nn.functional.pad(codes, (0, -codes.shape[1] % width, 0, -len(codes) % 8)).unflatten(1, (-1, width))
    blocks = nn.functional.pad(blocks, (0, even - width))
    scale, total = quantised.scale.flatten(0, -3), x.new_zeros(count, len(codes), dtype=torch.float32)
    for block in range(blocks.shape[1]):
        sums = torch._int_mm(rows[:, block].contiguous(), blocks[:, block].T)
        total += sums[:count, : len(codes)] * scale[:, block]
    return total.view(*x.shape[:-1], -1)


def _wide(x: Tensor) -> Tensor:
    """Return `x` in fp32, or in fp64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_torch(model: PackedModel) -> TinyTitan:
    """Return a TinyTitan over packed weights, in evaluation mode.

    Raises `ConfigError` for a model that is no TinyTitan: ONNX and GGUF run those.
    """
    a = model.architecture
    if a.titan is None:
        raise ConfigError.of("format", "torch", "runs TinyTitans only", "use onnx or gguf for other decoders")
    titan = TinyTitan(a.titan)
    matrices = {n: m for n, m in model.matrices.items() if not isinstance(m, Tensor)}
    plain = {n: m for n, m in model.matrices.items() if isinstance(m, Tensor)} | model.vectors
    titan.load_state_dict(plain, strict=False)
    for name, matrix in matrices.items():
        layer = name.removesuffix(".weight")
        if layer in ("embedding", "head"):
            titan.set_submodule(layer, PackedWeight(matrix))
        else:
            bias = model.vectors.get(f"{layer}.bias")
            activations = quantiser_for(a.activations, matrix.codes.shape[1], matrix.bits)
            titan.set_submodule(layer, PackedLinear(matrix, bias, activations))
    if not isinstance(model.head, Tensor):
        titan.norm = QuantisedNorm(titan.norm, quantiser_for(a.activations, a.d_model, model.head.bits))
    return titan.eval().requires_grad_(False)
