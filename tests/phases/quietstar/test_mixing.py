"""The mixing head: where it starts, its bounds, and that mixing hidden states mixes log-probabilities."""

import torch

from phases.quietstar.mixing import MixingHead, mix


def test_every_weight_starts_at_the_initial_one() -> None:
    head = MixingHead(8, 5, 0.2)
    weights = head(torch.randn(7, 8), torch.randn(7, 8))
    assert torch.allclose(weights, torch.full((7,), 0.2))


def test_the_weight_stays_within_zero_and_one() -> None:
    head = MixingHead(8, 5, 0.5)
    with torch.no_grad():
        head.layers[-1].weight.fill_(3.0)
    weights = head(2 * torch.randn(100, 8), 2 * torch.randn(100, 8))
    assert 0 < weights.min() < weights.max() <= 1


def test_the_last_layer_learns_from_zero() -> None:
    head = MixingHead(8, 5, 0.5)
    head(torch.randn(7, 8), torch.randn(7, 8)).sum().backward()
    assert head.layers[-1].weight.grad.abs().sum() > 0


def test_mixed_hidden_states_give_the_renormalised_mix_of_log_probabilities() -> None:
    base, thought, matrix, weight = torch.randn(6, 8), torch.randn(6, 8), torch.randn(11, 8), torch.rand(6)
    found = torch.log_softmax(mix(base, thought, weight) @ matrix.T, -1)
    p, q = torch.log_softmax(base @ matrix.T, -1), torch.log_softmax(thought @ matrix.T, -1)
    mixed = (1 - weight[:, None]) * p + weight[:, None] * q
    assert torch.allclose(found, torch.log_softmax(mixed, -1), atol=1e-5)
