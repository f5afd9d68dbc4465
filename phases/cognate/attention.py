"""Scaled dot-product attention whose backward pass suits a CPU.

The forward pass is PyTorch's own on every device. Its backward pass on CPUs is slow, in bf16 by a factor of four, as it
does not use the matrix units; five batched products with the probabilities computed again do.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention of `q` (B, H, A, K) to `k` and `v` (B, H, W, K), as (B, H, A, K).

    `mask` (A, W) or (B, 1, A, W) is true where attention is allowed; None allows all.
    """
    if torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu":
        out: Tensor = _Attention.apply(q, k, v, mask)  # type: ignore[no-untyped-call]
        return out
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, mask = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        scores = (q * scale) @ k.transpose(-1, -2)  # (B, H, A, W)
        if mask is not None:
            scores += torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        p = torch.softmax(scores, dim=-1)
        d_v = p.transpose(-1, -2) @ grad
        d_p = grad @ v.transpose(-1, -2)
        d_scores = torch._softmax_backward_data(d_p, p, -1, q.dtype)
        return (d_scores @ k).mul_(scale), (d_scores.transpose(-1, -2) @ q).mul_(scale), d_v, None
