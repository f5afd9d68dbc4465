"""Distillation through a linear head, chunk by chunk, as `phases.training.losses` does for hard targets.

The gradient of KL(teacher || student) by the student's logits is the difference of the distributions. It is computed
in the forward pass, while both are at hand, so the logits of all tokens never exist at once.

Shapes: N tokens, D model width, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from phases.training.losses import CHUNK, LOGITS_BYTES


class Predictions(NamedTuple):
    """Logits as the product that makes them."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)


def distillation_loss(student: Predictions, teacher: Predictions) -> Tensor:
    """Return the mean of KL(teacher || student) over N tokens, in nats. The widths D may differ.

    Products run in the autocast type where autocast is on, the softmax in fp32. The gradient reaches the student's
    tensors and can be taken once.
    """
    loss: Tensor = _Distillation.apply(*student, *teacher)  # type: ignore[no-untyped-call]
    return loss


class _Distillation(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, taught_hidden: Tensor, taught_weight: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        h, w, th, tw = (x.detach().to(dtype) for x in (hidden, weight, taught_hidden, taught_weight))
        chunk = max(1, min(CHUNK, LOGITS_BYTES // (4 * len(w))))
        total = torch.zeros((), device=h.device)
        d_hidden, d_weight = torch.empty_like(h), torch.zeros(w.shape, device=h.device)
        for start in range(0, len(h), chunk):
            part = slice(start, start + chunk)
            logs = torch.log_softmax((h[part] @ w.T).float(), 1)
            taught_logs = torch.log_softmax((th[part] @ tw.T).float(), 1)
            taught = taught_logs.exp()
            total += (taught * taught_logs.sub_(logs)).sum()
            d_logits = logs.exp_().sub_(taught).to(dtype)
            torch.mm(d_logits, w, out=d_hidden[part])
            d_weight += d_logits.T @ h[part]
        ctx.save_for_backward(d_hidden.to(hidden.dtype), d_weight.to(weight.dtype))
        return total / len(h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = grad / len(d_hidden)
        return d_hidden * scale, d_weight * scale, None, None
