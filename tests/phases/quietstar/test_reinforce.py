"""The estimator's gradient against exact enumeration of all groups of thoughts, and what its baseline is for."""

import itertools

import pytest
import torch
from torch import Tensor

from phases.errors import NumericalError
from phases.quietstar.reinforce import advantages, policy_loss

REWARDS = torch.tensor([0.3, -1.2, 2.0])


def expected_gradient(
    logits: Tensor, parallel: int, rewards: Tensor = REWARDS, *, baseline: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean and total variance of the gradient over all groups of thoughts of one token."""
    p, mean, square = torch.softmax(logits.detach(), 0), torch.zeros(3), torch.zeros(3)
    for group in itertools.product(range(3), repeat=parallel):
        chosen = torch.tensor(group)
        log_probs = torch.log_softmax(logits, 0)[chosen]
        advantage = advantages(rewards[chosen]) if baseline else rewards[chosen]
        loss = policy_loss(log_probs, advantage, torch.full((parallel,), 1 / parallel))
        (gradient,) = torch.autograd.grad(loss, logits)
        chance = p[chosen].prod()
        mean, square = mean + chance * gradient, square + chance * gradient**2
    return mean, (square - mean**2).sum()


@pytest.mark.parametrize("parallel", [1, 2, 3, 4])
def test_its_expectation_is_the_gradient_of_the_expected_reward(parallel: int) -> None:
    logits = torch.tensor([0.2, 0.7, -0.4], requires_grad=True)
    (exact,) = torch.autograd.grad(-(torch.softmax(logits, 0) * REWARDS).sum(), logits)
    assert torch.allclose(expected_gradient(logits, parallel)[0], exact, atol=1e-6)


def test_the_baseline_takes_variance_away_when_rewards_share_an_offset() -> None:
    logits = torch.tensor([0.2, 0.7, -0.4], requires_grad=True)
    with_it = expected_gradient(logits, 4, REWARDS + 3)
    without = expected_gradient(logits, 4, REWARDS + 3, baseline=False)
    assert torch.allclose(with_it[0], without[0], atol=1e-5)
    assert with_it[1] < 0.2 * without[1]


def test_positive_only_drops_what_is_worse_than_the_mean() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert advantages(rewards).tolist() == [[-3.0, -1.5, 4.5]]
    assert advantages(rewards, positive_only=True).tolist() == [[0.0, 0.0, 4.5]]


def test_rewards_that_are_not_finite_are_named() -> None:
    with pytest.raises(NumericalError, match="1 of 2 thought rewards"):
        advantages(torch.tensor([float("nan"), 1.0]))
