"""Packed files and running them in torch: exact round trips, sizes, damage, and the same outputs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from phases.bitnet.activations import BLOCK_128, PER_TOKEN, ActivationQuantiser
from phases.bitnet.archive import Kind, from_bytes, to_bytes
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.packed import pack
from phases.bitnet.packed_linear import PackedLinear, integer_product, integer_product_int8, to_torch
from phases.bitnet.ternary import TernaryTensor, ternarise
from phases.bitnet.titan import to_bitnet
from phases.cognate.titan import TinyTitan
from phases.errors import ArtifactError


@pytest.mark.parametrize("kind", ["torch", "archive"])
@pytest.mark.parametrize("layout", ["row", "tensor"])
def test_round_trip_is_exact(untied: TinyTitan, kind: Kind, layout: str) -> None:
    quantisation = QuantisationConfig.model_validate({"layout": layout, "embedding": "int4"})
    model = pack(to_bitnet(untied, quantisation))
    found = from_bytes(to_bytes(model, kind))
    assert found.architecture == model.architecture
    assert set(found.matrices) == set(model.matrices)
    for name, matrix in model.matrices.items():
        again = found.matrices[name]
        assert type(again) is type(matrix)
        assert torch.equal(again.codes, matrix.codes)
        assert torch.equal(again.scale, matrix.scale)
    for name, vector in model.vectors.items():
        wanted = vector.half().float() if kind == "archive" else vector
        assert torch.equal(found.vectors[name], wanted)


def test_sizes_are_those_of_the_bits(titan: TinyTitan) -> None:
    model = pack(to_bitnet(titan, QuantisationConfig(embedding="int4")))
    ternary = sum(m.codes.numel() for m in model.matrices.values() if isinstance(m, TernaryTensor))
    sizes = {kind: len(to_bytes(model, kind)) for kind in ("torch", "archive")}
    assert sizes["torch"] - sizes["archive"] >= 0.3 * ternary / 8


@pytest.mark.parametrize("kind", ["torch", "archive"])
def test_damage_is_an_error(titan: TinyTitan, kind: Kind) -> None:
    data = to_bytes(pack(to_bitnet(titan, QuantisationConfig())), kind)
    for damaged in (b"", data[: len(data) // 2], b"GGUF" + data[4:]):
        with pytest.raises(ArtifactError):
            from_bytes(damaged)


@pytest.mark.parametrize("tied", [True, False])
def test_packed_model_computes_what_the_quantised_one_does(
    titan: TinyTitan, untied: TinyTitan, rows: Tensor, tied: bool
) -> None:
    model = to_bitnet(titan if tied else untied, QuantisationConfig()).eval()
    packed = to_torch(from_bytes(to_bytes(pack(model), "torch")))
    with torch.no_grad():
        wanted = model(rows)[0]
        off = (packed(rows)[0] - wanted).abs() / wanted.abs().max()
    assert float(off.quantile(0.25)) <= 1e-6
    assert float(off.max()) <= 0.03  # an activation on the edge between two codes may fall to either side
    stored = sum(t.numel() * t.element_size() for t in packed.blocks.state_dict().values())
    assert stored < 0.15 * sum(4 * p.numel() for p in titan.blocks.parameters())


@pytest.mark.parametrize("quantiser", [BLOCK_128, PER_TOKEN, ActivationQuantiser(32)])
@pytest.mark.parametrize("shape", [(200, 37), (648, 216), (4, 1)])
def test_integer_product_is_exact(quantiser: ActivationQuantiser, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, shape, generator=generator).to(torch.int8)
    x = torch.randn(3, shape[1], generator=generator)
    exact = quantiser.values(x.double()).numpy().astype(np.float64) @ codes.numpy().astype(np.float64).T
    for product in (integer_product, integer_product_int8):
        np.testing.assert_allclose(product(x, codes, quantiser).numpy(), exact, rtol=1e-5, atol=1e-5)


def test_a_layer_of_odd_shape_with_a_bias() -> None:
    weight, bias = torch.randn(200, 37), torch.randn(200)
    stored = ternarise(weight)
    x = torch.randn(2, 5, 37)
    found = PackedLinear(stored, bias, BLOCK_128)(x)
    torch.testing.assert_close(found, BLOCK_128.values(x) @ stored.dequantise().T + bias, rtol=1e-4, atol=1e-4)
