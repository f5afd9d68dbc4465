"""Heads padded to what the runtime's attention takes: nothing is lost, and they turn as the heads themselves do."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.bitnet.onnx_heads import pad_heads, padded_width, unpadded
from phases.bitnet.rows import quantise_rows
from phases.bitnet.ternary import ternarise
from phases.cognate.rope import rotate, rotation

WIDTHS = st.integers(1, 40).map(lambda half: 2 * half)


@settings(max_examples=40, deadline=None)
@given(WIDTHS, st.integers(1, 4))
def test_padding_keeps_every_row_and_adds_zeros(width: int, heads: int) -> None:
    matrix = torch.randn(heads * width, 5, generator=torch.Generator().manual_seed(width))
    for stored in (matrix, ternarise(matrix), ternarise(matrix, layout="tensor"), quantise_rows(matrix, 4)):
        wider = pad_heads(stored, width)
        before, after = (m if isinstance(m, torch.Tensor) else m.dequantise() for m in (stored, wider))
        assert after.shape == (heads * padded_width(width), 5)
        assert torch.equal(after[unpadded(width, heads)], before)
        assert after.any(1).sum() == before.any(1).sum()
    assert padded_width(width) % 16 == 0
    assert 0 <= padded_width(width) - width < 16


@settings(max_examples=40, deadline=None)
@given(WIDTHS, st.integers(1, 4))
def test_padded_heads_turn_as_they_would(width: int, heads: int) -> None:
    x = torch.randn(3, heads, width, generator=torch.Generator().manual_seed(width))
    turns = rotation(torch.arange(3), width, 10_000.0, torch.float32)
    found = rotate(padded(x), (padded(turns[0]), padded(turns[1])))
    assert torch.equal(found, padded(rotate(x, turns)))


def padded(x: torch.Tensor) -> torch.Tensor:
    """Return the last axis of `x` (..., K) padded as a head."""
    width = x.shape[-1]
    out = x.new_zeros(*x.shape[:-1], padded_width(width))
    out[..., unpadded(width, 1)] = x
    return out
