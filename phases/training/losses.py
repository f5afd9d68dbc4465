"""Cross-entropy of a linear head, chunk by chunk: the logits of all tokens never exist at once.

With a vocabulary of 32,000 they are the largest tensor of a small model, and writing and reading them costs more than
the matrix products. The gradient is computed in the forward pass, while a chunk's probabilities are at hand, so nothing
is kept or computed twice; this is possible because the weight of each token in the loss is known beforehand. Buffers
are shared by the chunks: fresh memory for each would cost as much again in page faults.

Shapes: N tokens, C tokens of a chunk, D model width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK, LOGITS_BYTES = 1024, 1 << 26  # tokens per matrix product, and the most memory for their logits
ROWS = 32  # tokens per softmax on a CPU, in fp32: few enough for its cache


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor | None = None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the tokens' losses and each token's loss (N,) in nats, the latter without gradient.

    `hidden` (N, D), `weight` (V, D), `targets` (N,). `token_weights` (N,) are 1/N each where None, which makes the sum
    a mean. Products run in the autocast type where autocast is on; the softmax is in fp32 either way. The gradient can
    be taken once. `chunk` tokens share a matrix product; None picks what fits in 64 MiB.
    """
    if token_weights is None:
        token_weights = torch.full_like(targets, 1, dtype=torch.float32) / len(targets)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    chunk = chunk or max(1, min(CHUNK, LOGITS_BYTES // (len(weight) * dtype.itemsize)))
    if not torch.is_grad_enabled():  # a function is told otherwise that its inputs need their gradients
        hidden, weight = hidden.detach(), weight.detach()
    arguments = (hidden, weight, targets, token_weights, chunk, dtype)
    loss, losses = _LinearCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss, losses


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        chunk: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        width = hidden.shape[1]
        h, w = _padded(hidden.detach().to(dtype)), _padded(weight.detach().to(dtype))
        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        logits = torch.empty(min(chunk, len(h)), len(w), dtype=dtype, device=h.device)
        rows = ROWS if h.device.type == "cpu" else chunk
        softmax = _Softmax(min(rows, chunk), len(w), h.device)
        losses = torch.empty(len(h), dtype=torch.float32, device=h.device)
        d_hidden = torch.empty_like(h)
        d_weight: Tensor | None = None
        for start in range(0, len(h), chunk):
            part = slice(start, start + chunk)
            part_logits = torch.mm(h[part], w.T, out=logits[: len(h[part])])
            blocks = part_logits.split(rows), targets[part].split(rows), losses[part].split(rows)
            for block, wanted, block_losses in zip(*blocks, strict=True):
                softmax.apply(block, wanted, block_losses, needs_gradient)
            if needs_gradient:
                # The tokens' weights scale the narrow factor of each product, not the wide one.
                torch.mm(part_logits, w, out=d_hidden[part])
                product = part_logits.T @ (h[part, :width] * token_weights[part, None]).to(dtype)
                d_weight = product.float() if d_weight is None else d_weight.add_(product)
        if needs_gradient:
            ctx.save_for_backward((d_hidden[:, :width] * token_weights[:, None]).to(hidden.dtype), d_weight)
        ctx.weight_type = weight.dtype
        ctx.mark_non_differentiable(losses)
        # Not a product of vectors: autocast would round it to bf16.
        return (losses * token_weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        # In place, for these are large; autograd itself refuses a second pass over tensors that have changed.
        return d_hidden.mul_(grad), d_weight.mul_(grad).to(ctx.weight_type), None, None, None, None


def _padded(x: Tensor) -> Tensor:
    """Append zeros to rows of 2-byte numbers: matrix units are up to twice as fast on multiples of 32."""
    missing = -x.shape[1] % 32 if x.dtype.itemsize == 2 else 0
    return F.pad(x, (0, missing)) if missing else x


class _Softmax:
    """Losses and their gradients in fp32 from logits of any type, in two buffers that every block reuses."""

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self.logits, self.logs = (torch.empty(rows, vocabulary, device=device) for _ in range(2))

    def apply(self, logits: Tensor, targets: Tensor, losses: Tensor, differentiate: bool) -> None:
        """Fill `losses` (R,) from `logits` (R, V) and, where asked, put the losses' gradient in the logits' place."""
        wide = self.logits[: len(logits)].copy_(logits)
        logs = torch.log_softmax(wide, 1, out=self.logs[: len(logits)])
        wanted = targets.unsqueeze(1)
        torch.neg(logs.gather(1, wanted).squeeze(1), out=losses)
        if differentiate:
            gradient = logs.exp_().scatter_add_(1, wanted, logs.new_full(wanted.shape, -1))
            logits.copy_(gradient)
