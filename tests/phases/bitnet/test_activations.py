"""Activation quantisers: formulas, blocks, and the straight-through gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.bitnet.activations import BLOCK_64, BLOCK_128, PER_TOKEN, ActivationQuantiser, block_size, quantiser_for

SIZES = st.sampled_from([BLOCK_64, BLOCK_128, PER_TOKEN, ActivationQuantiser(32)])


def test_per_token_is_bitnets_formula() -> None:
    x = torch.randn(5, 216, generator=torch.Generator().manual_seed(0))
    s = 127 / x.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(PER_TOKEN.values(x), (x * s).round().clamp(-128, 127) / s)


def test_blocks_do_not_see_one_another() -> None:
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(1))
    x[0, 200] = 1e4  # an outlier costs its own block only
    found = BLOCK_128.values(x)
    torch.testing.assert_close(found[:, :128], PER_TOKEN.values(x[:, :128]))
    torch.testing.assert_close(found[:, 256:], PER_TOKEN.values(x[:, 256:]))
    assert found[0, 200] == 1e4


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 300), st.integers(0, 100))
def test_properties(quantiser: ActivationQuantiser, width: int, seed: int) -> None:
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    found, integers = quantiser.values(x), quantiser.quantise(x)
    assert found.shape == x.shape
    assert float((found - x).abs().max()) <= float(x.abs().max()) / 254 * 1.001
    assert torch.equal((integers.codes * integers.scale).flatten(-2)[:, :width], found)
    torch.testing.assert_close(quantiser.values(found), found, rtol=1e-5, atol=1e-6)
    assert torch.equal(quantiser.values(torch.zeros(2, width)), torch.zeros(2, width))


@pytest.mark.parametrize(("columns", "bits", "size"), [(216, 2, 64), (256, 2, 64), (257, 2, 128), (216, 8, 128)])
def test_narrow_ternary_matrices_have_smaller_blocks(columns: int, bits: int, size: int) -> None:
    assert quantiser_for("block", columns, bits).size == block_size(columns, bits) == size
    assert quantiser_for("per_token", columns, bits) is PER_TOKEN


def test_gradient_passes_straight_through() -> None:
    x = torch.randn(4, 130, requires_grad=True)
    grad = torch.randn(4, 130)
    BLOCK_128(x).backward(grad)
    assert x.grad is not None
    assert torch.equal(x.grad, grad)
