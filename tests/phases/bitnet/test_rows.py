"""Row-wise int8 and int4."""

import pytest
import torch

from phases.bitnet.rows import Bits, quantise_rows
from phases.errors import NumericalError


@pytest.mark.parametrize(("bits", "most", "rmse"), [(8, 127, 0.008), (4, 7, 0.115)])
def test_error_is_that_of_the_bits(bits: Bits, most: int, rmse: float) -> None:
    w = torch.randn(200, 216, generator=torch.Generator().manual_seed(0))
    found = quantise_rows(w, bits)
    assert int(found.codes.abs().max()) == most
    assert float((found.dequantise() - w).square().mean().sqrt()) < rmse
    assert torch.equal(found.scale, found.scale.half().float())
    half_a_step = found.scale / 2 + w.abs().amax(1, keepdim=True) * (0.45 if bits == 4 else 1e-2)
    assert bool(((found.dequantise() - w).abs() <= half_a_step).all())


def test_a_quantised_matrix_stays_as_it_is() -> None:
    w = torch.randn(20, 37, generator=torch.Generator().manual_seed(1))
    once = quantise_rows(w, 8).dequantise()
    torch.testing.assert_close(quantise_rows(once, 8).dequantise(), once, rtol=1e-3, atol=1e-6)


def test_zeros_and_what_is_not_finite() -> None:
    w = torch.randn(3, 8)
    w[1] = 0
    assert not quantise_rows(w, 4).dequantise()[1].any()
    w[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="finite"):
        quantise_rows(w, 8)
