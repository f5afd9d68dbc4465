"""Attention of parallel thoughts: each sees its prefix and itself, and nothing of the others.

The two parts are computed apart, each with its log-sum-exp, and merged exactly; no mask over all thoughts and all of
their tokens exists. Prefix scores are made for a block of thoughts at a time, only as far as the furthest of them
reaches. The backward pass uses the merged output and log-sum-exp for both parts, which makes each part's usual gradient
formula right (as ring attention does, Liu et al. 2023). Another device than a CPU computes the same with products.

Shapes: B rows, M thoughts of a row, A new tokens of each, C of its tokens so far (the new ones included), W places of
the prefix, H heads, K head dimension.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

QUERIES = 64  # of a block: enough for the matrix units, few enough for little waste at its ragged end

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Block(NamedTuple):
    """Adjacent thoughts whose prefix parts are computed together."""

    thoughts: slice
    width: int  # prefix places that the furthest of them sees
    mask: Tensor | None  # (B, 1, A * thoughts, width), 0 or -inf; None where all see all of it


def blocks(reach: Tensor, length: int, like: Tensor) -> list[Block]:
    """Cut thoughts into blocks. `reach` (B, M) says how many places each sees, `length` is A."""
    furthest = reach.amax(0).tolist()
    nearest = reach.amin(0).tolist()
    size, start, found = max(1, QUERIES // length), 0, list[Block]()
    while start < len(furthest):
        end = min(start + size, len(furthest))
        while end < len(furthest) and furthest[end] == nearest[end] == furthest[start] == nearest[start]:
            end += 1  # one position's thoughts need no mask, however many they are
        width, mask = max(furthest[start:end]), None
        if min(nearest[start:end]) < width:
            hidden = torch.arange(width, device=reach.device) >= reach[:, start:end, None]
            empty = torch.zeros(hidden.shape, dtype=like.dtype, device=reach.device)
            mask = empty.masked_fill_(hidden, -torch.inf).repeat_interleave(length, dim=1).unsqueeze(1)
        found.append(Block(slice(start, end), width, mask))
        start = end
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, parts: Sequence[Block]) -> Tensor:
    """Return what the new tokens' queries `q` (B, M, H, A, K) attend to, in the same shape.

    `k` and `v` (B, M, H, C, K) are the thoughts' own, `prefix_k` and `prefix_v` (B, H, W, K) those of the text.
    """
    out: Tensor = _ThoughtAttention.apply(q, k, v, prefix_k, prefix_v, parts)  # type: ignore[no-untyped-call]
    return out


class _ThoughtAttention(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, parts: Sequence[Block]
    ) -> Tensor:
        scores = _own_scores(q, k)
        own_lse = scores.logsumexp(-1)  # (B, M, H, A)
        own = (scores.sub_(own_lse.unsqueeze(-1)).exp_().to(v.dtype) @ v).float()
        prefix, prefix_lse = torch.empty_like(own), torch.empty_like(own_lse)
        for part in parts:
            seen_k, seen_v = prefix_k[:, :, : part.width], prefix_v[:, :, : part.width]
            found, found_lse = _prefix(_together(q[:, part.thoughts]), seen_k, seen_v, part.mask)
            prefix[:, part.thoughts] = _apart(found, q.shape[3])
            prefix_lse[:, part.thoughts] = _apart(found_lse.unsqueeze(-1), q.shape[3]).squeeze(-1)
        lse = torch.logaddexp(prefix_lse, own_lse)
        own.mul_(own_lse.sub_(lse).exp_().unsqueeze(-1))
        result = own.addcmul_(prefix, prefix_lse.sub_(lse).exp_().unsqueeze(-1)).to(q.dtype)
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, result, lse)
        ctx.parts = parts
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, prefix_k, prefix_v, out, lse = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        inner = torch.linalg.vecdot(grad.float(), out.float()).unsqueeze(-1)  # (B, M, H, A, 1)
        p = _own_scores(q, k).sub_(lse.unsqueeze(-1)).exp_()
        d_v = p.to(v.dtype).transpose(-1, -2) @ grad
        d_scores = (grad @ v.transpose(-1, -2)).float().sub_(inner).mul_(p).mul_(scale).to(q.dtype)
        d_q, d_k = d_scores @ k, d_scores.transpose(-1, -2) @ q
        d_prefix_k, d_prefix_v = torch.zeros_like(prefix_k), torch.zeros_like(prefix_v)
        for part in ctx.parts:
            which, width = part.thoughts, part.width
            block_grad, block_q, block_out = (_together(x[:, which]) for x in (grad, q, out))
            block_lse = _together(lse[:, which].unsqueeze(-1)).squeeze(-1)
            seen_k, seen_v = prefix_k[:, :, :width], prefix_v[:, :, :width]
            found = _prefix_backward(block_grad, block_q, block_out, block_lse, seen_k, seen_v, part.mask)
            d_q[:, which] += _apart(found[0], q.shape[3])
            d_prefix_k[:, :, :width] += found[1]
            d_prefix_v[:, :, :width] += found[2]
        return d_q, d_k, d_v, d_prefix_k, d_prefix_v, None


def _own_scores(q: Tensor, k: Tensor) -> Tensor:
    """Return the scaled scores (B, M, H, A, C) in fp32, -inf where a token would see a later one."""
    new, tokens = q.shape[3], k.shape[3]
    scores: Tensor = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float()
    if new > 1:
        later = torch.ones(new, tokens, dtype=torch.bool, device=q.device).triu(tokens - new + 1)
        scores.masked_fill_(later, -torch.inf)
    return scores


def _together(x: Tensor) -> Tensor:
    """Return the queries of a block's thoughts (B, n, H, A, K) side by side, (B, H, n * A, K)."""
    return x.transpose(1, 2).flatten(2, 3)


def _apart(x: Tensor, length: int) -> Tensor:
    """Undo `_together`."""
    queries: Tensor = x.unflatten(2, (-1, length))
    return queries.transpose(1, 2)


def _prefix(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return attention (B, H, R, K) to the prefix and its log-sum-exp (B, H, R)."""
    if q.device.type == "cpu":
        out, lse = _flash(q, k, v, 0.0, False, attn_mask=mask)
        return out, lse
    return products(q, k, v, mask)


def products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return attention and its log-sum-exp from plain matrix products, on any device."""
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float()
    scores = scores if mask is None else scores + mask
    lse = scores.logsumexp(-1)
    attended: Tensor = (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v
    return attended, lse


def _prefix_backward(
    grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values, given the merged `out` and `lse`.

    PyTorch's own backward pass is the faster one on CPUs in fp32 and the slower one in bf16, by up to six times.
    """
    if q.device.type == "cpu" and q.dtype == torch.float32:
        d_q, d_k, d_v = _flash_backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask)
        return d_q, d_k, d_v
    scale = q.shape[-1] ** -0.5
    scores = ((q * scale) @ k.transpose(-1, -2)).float()
    p = (scores if mask is None else scores + mask).sub_(lse.unsqueeze(-1)).exp_()
    inner = torch.linalg.vecdot(grad.float(), out.float()).unsqueeze(-1)
    d_scores = (grad @ v.transpose(-1, -2)).float().sub_(inner).mul_(p).mul_(scale).to(q.dtype)
    return d_scores @ k, d_scores.transpose(-1, -2) @ q, p.to(v.dtype).transpose(-1, -2) @ grad
