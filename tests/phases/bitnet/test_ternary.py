"""Ternary matrices: formulas against exact references, properties, and input that is bad or odd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.bitnet.ternary import TWN_FACTOR, Layout, Method, TernaryTensor, ternarise
from phases.errors import ConfigError, NumericalError

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 60))
METHODS = st.sampled_from(["absmean", "least_squares", "twn"])
LAYOUTS = st.sampled_from(["tensor", "row"])


def gaussian(shape: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_absmean_is_the_papers_formula() -> None:
    w = gaussian((64, 200), 0)
    gamma = w.abs().mean().clamp_min(1e-5)
    wanted = (w / gamma).round().clamp(-1, 1)
    found = ternarise(w, "absmean", "tensor")
    assert torch.equal(found.codes.float(), wanted)
    torch.testing.assert_close(found.scale, gamma.view(1, 1), rtol=2**-11, atol=0)
    torch.testing.assert_close(found.dequantise(), gamma * wanted, rtol=2**-11, atol=0)  # times, never divided by
    assert found.zeros == pytest.approx(0.31, abs=0.02)


def test_twn_is_the_papers_formula() -> None:
    w = gaussian((3, 500), 1)
    found = ternarise(w, "twn", "row")
    for row, codes, scale in zip(w, found.codes, found.scale, strict=True):
        above = row.abs() >= TWN_FACTOR * row.abs().mean()
        assert torch.equal(codes != 0, above)
        assert float(scale) == pytest.approx(float(row.abs()[above].mean()), rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(SHAPES, METHODS, LAYOUTS, st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 100.0]))
def test_properties(shape: tuple[int, int], method: Method, layout: Layout, seed: int, size: float) -> None:
    w = gaussian(shape, seed) * size
    found = ternarise(w, method, layout)
    assert set(found.codes.unique().tolist()) <= {-1, 0, 1}
    assert bool((found.codes * w >= 0).all())
    assert torch.equal(found.scale, found.scale.half().float())
    flipped = ternarise(-w, method, layout)
    assert torch.equal(flipped.codes, -found.codes)
    assert torch.equal(flipped.scale, found.scale)
    again = ternarise(found.dequantise(), method, layout)
    assert torch.equal(again.dequantise(), found.dequantise())  # what is ternary stays, however often it is saved


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), LAYOUTS, st.floats(0.5, 1.5))
def test_least_squares_scale_is_the_nearest(seed: int, layout: Layout, factor: float) -> None:
    w = gaussian((5, 50), seed)
    found = ternarise(w, "least_squares", layout)
    other = (found.codes * found.scale * factor - w).square().sum()
    assert float((found.dequantise() - w).square().sum()) <= float(other) * (1 + 1e-5)


def test_least_squares_is_nearer_than_absmean() -> None:
    w = gaussian((64, 216), 2)
    errors = {m: float((ternarise(w, m, "row").dequantise() - w).square().sum()) for m in ("absmean", "least_squares")}
    assert errors["least_squares"] < 0.9 * errors["absmean"]


def test_a_row_of_zeros_stays_one() -> None:
    w = gaussian((4, 37), 3)
    w[2] = 0
    for method in ("absmean", "least_squares", "twn"):
        found = ternarise(w, method, "row")
        assert torch.isfinite(found.dequantise()).all()
        assert not found.dequantise()[2].any()
        assert found.dequantise()[1].any()
    assert not ternarise(torch.zeros(3, 5), "absmean", "tensor").dequantise().any()


def test_an_outlier_rules_its_own_row_only() -> None:
    w = gaussian((200, 37), 4)
    w[7, 5] = 1e4
    found = ternarise(w, "least_squares", "row")
    assert found.dequantise()[7, 5] == 1e4
    clean = torch.arange(200) != 7
    assert torch.equal(found.codes[clean], ternarise(w[clean], "least_squares", "row").codes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_not_finite(bad: float) -> None:
    w = gaussian((4, 4), 5)
    w[1, 1] = bad
    with pytest.raises(NumericalError, match="finite"):
        ternarise(w)


def test_refuses_what_fp16_cannot_scale_and_what_is_no_matrix() -> None:
    with pytest.raises(NumericalError, match="fp16"):
        ternarise(torch.full((2, 2), 1e5))
    with pytest.raises(ConfigError, match="matrix"):
        ternarise(torch.ones(3))


def test_type_refuses_what_is_not_ternary() -> None:
    with pytest.raises(ConfigError, match="not ternary"):
        TernaryTensor(torch.full((2, 2), 2, dtype=torch.int8), torch.ones(1, 1), "tensor")
    with pytest.raises(ConfigError, match="scale of its layout"):
        TernaryTensor(torch.ones(2, 2, dtype=torch.int8), torch.ones(1, 1), "row")
