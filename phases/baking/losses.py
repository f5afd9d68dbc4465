"""What a student learns from a teacher's next-token distributions, token by token, each (N,) in nats.

Forward KL over the whole vocabulary is what keeps rates: it has its minimum where the distributions are equal. The two
others are what is commonly done instead, kept to be compared (`forge bench baking`).

Shapes: N tokens, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor

Loss = Literal["forward_kl", "top_k", "sft"]
TOP_K = 5


def token_losses(kind: Loss, teacher: Tensor, student: Tensor, sampled: Tensor) -> Tensor:
    """Return each token's loss for logits (N, V) of both and the `sampled` tokens (N,)."""
    match kind:
        case "forward_kl":
            return forward_kl(teacher, student)
        case "top_k":
            return top_k_kl(teacher, student)
        case "sft":
            return -torch.log_softmax(student.float(), -1).gather(1, sampled.unsqueeze(1)).squeeze(1)


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(teacher || student) (N,); Bhargava et al. 2024 (arXiv 2409.13697), eq. 2."""
    p, q = torch.log_softmax(teacher.float(), -1), torch.log_softmax(student.float(), -1)
    return (p.exp() * (p - q)).sum(-1)


def top_k_kl(teacher: Tensor, student: Tensor, k: int = TOP_K) -> Tensor:
    """Return the terms of the k likeliest tokens alone, as some public code has it.

    They are not the terms of a divergence: without the tail, mass may move to tokens that nobody looks at.
    """
    p, q = torch.log_softmax(teacher.float(), -1), torch.log_softmax(student.float(), -1)
    top, index = p.topk(min(k, p.shape[-1]), dim=-1)
    return (top.exp() * (top - q.gather(-1, index))).sum(-1)
