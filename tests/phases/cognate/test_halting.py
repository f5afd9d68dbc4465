"""Halting rules against their definitions, step by step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from phases.cognate.halting import (
    HaltingHead,
    bce_halting_loss,
    cumulative_halting,
    geometric_kl,
    graves_act,
    halting_distribution,
    halting_targets,
    steps_taken,
)

probabilities = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=8).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)
losses = st.lists(st.floats(0, 10), min_size=1, max_size=8).map(lambda v: torch.tensor(v, dtype=torch.float64))


@given(probabilities)
def test_graves_act_is_algorithm_of_the_paper(lambdas: Tensor) -> None:
    weights, cost = graves_act(lambdas, epsilon=0.01)
    total, expected = 0.0, []
    for step, value in enumerate(lambdas.tolist(), start=1):
        if total + value >= 0.99 or step == len(lambdas):
            expected.append(1 - total)
            break
        expected.append(value)
        total += value
    assert torch.allclose(weights[: len(expected)], torch.tensor(expected, dtype=torch.float64))
    assert not weights[len(expected) :].any()
    assert math.isclose(float(cost), len(expected) + expected[-1])


def test_the_ponder_cost_has_its_gradient_through_the_remainder() -> None:
    lambdas = torch.tensor([0.2, 0.3, 0.9], requires_grad=True)
    graves_act(lambdas)[1].backward()
    assert lambdas.grad is not None
    assert lambdas.grad.tolist() == [-1, -1, 0]


@given(probabilities)
def test_halting_is_a_distribution_and_its_sum_the_cumulative(lambdas: Tensor) -> None:
    p = halting_distribution(lambdas)
    assert math.isclose(float(p.sum()), 1)
    assert torch.allclose(p.cumsum(0)[:-1], cumulative_halting(lambdas)[:-1])


@given(probabilities, st.floats(0.05, 0.95))
def test_the_divergence_is_not_negative_and_zero_on_the_prior(lambdas: Tensor, lambda_p: float) -> None:
    assert float(geometric_kl(halting_distribution(lambdas), lambda_p)) >= -1e-9
    prior = torch.tensor([(1 - lambda_p) ** n for n in range(len(lambdas))], dtype=torch.float64)
    assert abs(float(geometric_kl(prior / prior.sum(), lambda_p))) < 1e-9


@given(losses, st.floats(0, 1))
def test_targets_say_whether_waiting_would_help(values: Tensor, tolerance: float) -> None:
    targets = halting_targets(values, tolerance)
    for step, value in enumerate(values.tolist()):
        assert bool(targets[step]) == (value - min(values[step:].tolist()) <= tolerance)
    assert targets[-1] == 1


@given(probabilities, st.floats(0.1, 0.99))
def test_steps_stop_at_the_threshold(lambdas: Tensor, threshold: float) -> None:
    going_on, expected = 1.0, 0
    for value in lambdas.tolist():
        going_on *= 1 - value
        expected += 1
        if 1 - going_on >= threshold:
            break
    assert abs(int(steps_taken(lambdas, threshold)) - expected) <= (abs(1 - going_on - threshold) < 1e-12)


def test_the_head_learns_to_tell_when_to_stop() -> None:
    torch.manual_seed(0)
    head = HaltingHead(4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    hidden = torch.randn(256, 4)
    targets = (hidden[:, 0] > 0).float()
    for _ in range(60):
        loss = bce_halting_loss(head(hidden), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((head(hidden) > 0).float() == targets).float().mean() > 0.95


def test_the_head_has_d_plus_one_parameters() -> None:
    assert sum(p.numel() for p in HaltingHead(216).parameters()) == pytest.approx(217)
