"""How far a model's predictions of a text have moved from those of the model it started as."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from phases.cognate.titan import TinyTitan

_CHUNK_BYTES = 1 << 25


def drift(reference: TinyTitan, rows: Tensor, outputs: Tensor, head: Tensor) -> Tensor:
    """Return the mean KL(reference || model) in nats per token of `rows` (B, T + 1), differentiable in the model.

    `outputs` (B, T, D) and the `head` (V, D) are the model's. Logits of a chunk of tokens exist at once.
    """
    with torch.no_grad():
        expected = torch.cat([segment.outputs for segment in reference.segments(rows)], dim=1).flatten(0, 1)
    size = max(1, _CHUNK_BYTES // (4 * len(head)))
    parts = zip(expected.split(size), outputs.flatten(0, 1).split(size), strict=True)
    sums = [checkpoint(_divergence, a, reference.head_weight.detach(), b, head, use_reentrant=False) for a, b in parts]
    return torch.stack(sums).sum() / len(expected)


def _divergence(expected: Tensor, reference_head: Tensor, outputs: Tensor, head: Tensor) -> Tensor:
    target = torch.log_softmax((expected @ reference_head.T).float(), -1)
    found = torch.log_softmax((outputs @ head.T).float(), -1)
    return (target.exp() * (target - found)).sum()
