"""Cross-entropy of a linear head, chunk by chunk: the logits of all tokens never exist at once.

With a vocabulary of 32,000 they are the largest tensor of a small model, and writing and reading them costs more than
the matrix products. The gradient is computed in the forward pass, while a chunk's probabilities are at hand, so nothing
is kept or computed twice; this is possible because the weight of each token in the loss is known beforehand.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

CHUNK = 512  # tokens; at V = 32,000 a chunk of probabilities is 64 MB in fp32


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the tokens' losses and each token's loss (N,) in nats, the latter without gradient.

    `hidden` (N, D), `weight` (V, D), `targets` (N,). `token_weights` (N,) are 1/N each where None, which makes the sum
    a mean. Products run in the autocast type where autocast is on; the softmax is in fp32 either way.
    """
    if token_weights is None:
        token_weights = torch.full_like(targets, 1, dtype=torch.float32) / len(targets)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    arguments = (hidden, weight, targets, token_weights, chunk, dtype)
    loss, losses = _LinearCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss, losses


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        chunk: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        h, w = hidden.detach().to(dtype), weight.detach().to(dtype)
        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]  # type: ignore[attr-defined]
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(h) if needs_gradient else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_gradient else None
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = (h[part] @ w.T).float()  # (C, V)
            wanted = logits.gather(1, targets[part, None])
            log_sum = logits.logsumexp(1, keepdim=True)
            losses[part] = (log_sum - wanted).squeeze(1)
            if d_hidden is None or d_weight is None:
                continue
            gradient = logits.sub_(log_sum).exp_()  # probabilities, in the same memory
            gradient.scatter_add_(1, targets[part, None], torch.full_like(wanted, -1))
            gradient = gradient.mul_(token_weights[part, None]).to(dtype)
            torch.mm(gradient, w, out=d_hidden[part])
            d_weight += gradient.T @ h[part]
        ctx.save_for_backward(d_hidden, d_weight)  # type: ignore[arg-type]
        ctx.types = hidden.dtype, weight.dtype  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(losses)
        return losses @ token_weights, losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        hidden_type, weight_type = ctx.types
        return (d_hidden * grad).to(hidden_type), d_weight.mul_(grad).to(weight_type), None, None, None, None
