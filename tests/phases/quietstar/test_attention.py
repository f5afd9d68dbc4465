"""Merged attention against one dense softmax over prefix and thought."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phases.quietstar.attention import _flash, attend, blocks, products


def dense(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, reach: Tensor) -> Tensor:
    new, tokens, width = q.shape[3], k.shape[3], prefix_k.shape[2]
    keys = torch.cat([prefix_k.unsqueeze(1).expand(-1, q.shape[1], -1, -1, -1), k], dim=3)
    values = torch.cat([prefix_v.unsqueeze(1).expand(-1, q.shape[1], -1, -1, -1), v], dim=3)
    scores = q @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
    prefix = (torch.arange(width) < reach[:, :, None])[:, :, None, None].expand(-1, -1, 1, new, -1)
    own = torch.ones(new, tokens, dtype=torch.bool).tril(tokens - new).expand(*reach.shape, 1, -1, -1)
    return torch.softmax(scores.masked_fill(~torch.cat([prefix, own], dim=-1), -torch.inf), -1) @ values


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 2), st.integers(1, 90), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_forward_and_backward_are_those_of_one_softmax(
    seed: int, batch: int, thoughts: int, new: int, before: int, low: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    width, heads, dim = 37, 3, 6
    dtype = torch.bfloat16 if low else torch.float32

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    own = (batch, thoughts, heads, before + new, dim)
    tensors = [leaf(batch, thoughts, heads, new, dim), leaf(*own), leaf(*own)]
    tensors += [leaf(batch, heads, width, dim), leaf(batch, heads, width, dim)]
    reach = torch.randint(1, width + 1, (batch, thoughts), generator=generator).sort(1).values
    grad = torch.randn(tensors[0].shape, generator=generator)
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    expected = dense(exact[0], exact[1], exact[2], exact[3], exact[4], reach)
    expected.backward(grad)
    found = attend(*tensors, blocks(reach, new, tensors[0]))
    found.backward(grad.to(dtype))
    near = {"atol": 0.08, "rtol": 0.05} if low else {"atol": 2e-6, "rtol": 2e-5}
    assert torch.allclose(found.float(), expected, **near)
    for a, b in zip(tensors, exact, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad.float(), b.grad, **near)


def test_blocks_cover_every_thought_once_and_reach_no_further_than_needed() -> None:
    reach = torch.tensor([[1] * 100 + list(range(2, 99))])
    found = blocks(reach, 2, torch.zeros(1))
    assert [i for block in found for i in range(block.thoughts.start, block.thoughts.stop)] == list(range(197))
    assert found[0].mask is None  # thoughts of one place
    assert found[0].thoughts == slice(0, 100)
    assert [block.width for block in found[1:]] == [33, 65, 97, 98]


@pytest.mark.parametrize("masked", [False, True])
def test_products_are_what_the_kernel_computes(masked: bool) -> None:
    q, k, v = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 9, 6), torch.randn(2, 3, 9, 6)
    mask = torch.zeros(2, 1, 5, 9).masked_fill(torch.ones(2, 1, 5, 9).triu(4) > 0, -torch.inf) if masked else None
    for a, b in zip(products(q, k, v, mask), _flash(q, k, v, 0.0, False, attn_mask=mask), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
