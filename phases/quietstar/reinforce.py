"""The learning signal of thoughts: how much better than its siblings a thought made the coming tokens.

REINFORCE with the mean reward of the thoughts at the same place as baseline. A thought's own reward is in that mean,
which would shrink the expected gradient to (G - 1) / G of the true one; scaling by G / (G - 1) undoes it, and equals
taking the mean over the others alone (Kool et al. 2019). A single thought has no siblings: its baseline is the text
without thoughts, from which its reward is counted anyway.
"""

import torch
from torch import Tensor

from phases.errors import NumericalError


def advantages(rewards: Tensor, *, positive_only: bool = False) -> Tensor:
    """Return what each of G parallel thoughts (..., G) is better than the mean of the others, in nats.

    `positive_only` drops what is worse (the published `remove_negative_rewards`), which biases the gradient.
    Raises `NumericalError` where a reward is not finite.
    """
    if not torch.isfinite(rewards).all():
        count = int((~torch.isfinite(rewards)).sum())
        raise NumericalError(f"{count} of {rewards.numel()} thought rewards are not finite; lower the learning rate")
    parallel = rewards.shape[-1]
    centred = rewards
    if parallel > 1:
        centred = (rewards - rewards.mean(-1, keepdim=True)) * (parallel / (parallel - 1))
    return centred.clamp_min(0) if positive_only else centred


def policy_loss(log_probs: Tensor, advantage: Tensor, weights: Tensor) -> Tensor:
    """Return the loss whose gradient is REINFORCE's: -sum of weight * advantage * log pi, all (..., G)."""
    return -(weights * advantage.detach() * log_probs).sum()
