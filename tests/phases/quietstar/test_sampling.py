"""Nucleus sampling: frequencies, the set itself, scores under the truncated policy, greed."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phases.quietstar.sampling import (
    SamplingConfig,
    log_probabilities,
    next_tokens,
    nucleus,
    ordered_nucleus,
    thinkable,
)

EVERY = torch.ones(6, dtype=torch.bool)


def logits_of(*p: float) -> torch.Tensor:
    return torch.tensor([[math.log(max(x, 1e-30)) for x in p]])


def test_greedy_takes_the_likeliest_always() -> None:
    logits = logits_of(0.1, 0.3, 0.29, 0.31, 0, 0).expand(500, -1)
    assert set(next_tokens(logits, EVERY, SamplingConfig(temperature=0)).tolist()) == {3}
    allowed = torch.tensor([True, True, True, False, True, True])
    assert set(next_tokens(logits, allowed, SamplingConfig(temperature=0)).tolist()) == {1}


@pytest.mark.parametrize(
    ("top_p", "temperature", "expected"),
    [
        (1.0, 1.0, (0.5, 0.3, 0.15, 0.05, 0, 0)),
        (0.9, 1.0, (0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0, 0, 0)),
        (0.49, 1.0, (1.0, 0, 0, 0, 0, 0)),
        (0.51, 1.0, (0.625, 0.375, 0, 0, 0, 0)),
        (1.0, 0.5, (0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365, 0, 0)),
    ],
)
def test_frequencies_and_scores(top_p: float, temperature: float, expected: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    logits, config = logits_of(0.5, 0.3, 0.15, 0.05, 0, 0), SamplingConfig(top_p=top_p, temperature=temperature)
    drawn = next_tokens(logits.expand(40_000, -1), EVERY, config)
    frequencies = torch.bincount(drawn, minlength=6) / len(drawn)
    assert torch.allclose(frequencies, torch.tensor(expected), atol=0.01)
    assert set(drawn.tolist()) == {i for i, p in enumerate(expected) if p}
    inside = torch.tensor([i for i, p in enumerate(expected) if p])
    scores = log_probabilities(logits.expand(len(inside), -1), torch.eye(6), inside, EVERY, config)
    assert torch.allclose(scores.exp(), torch.tensor([p for p in expected if p]), atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.99), st.integers(2, 300))
@example(17, 0.9238785181707482, 17)  # the mass of some tokens to rounding
def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass(seed: int, top_p: float, size: int) -> None:
    p = torch.softmax(2 * torch.randn(3, size, generator=torch.Generator().manual_seed(seed)), -1)
    sums = p.double().sort(descending=True).values.cumsum(-1)
    clear = ((sums - top_p).abs() > 1e-6).all(-1)  # elsewhere rounding decides on one token more
    assert torch.allclose(nucleus(p, top_p)[clear], ordered_nucleus(p, top_p)[clear], atol=1e-6)
    for row, least in zip(p, nucleus(p, top_p), strict=True):
        ordered = row.sort(descending=True).values
        count = int((row >= least).sum())
        assert ordered[:count].double().sum() >= top_p - 1e-6
        assert ordered[: count - 1].double().sum() < top_p + 1e-6


def test_scores_have_the_gradient_of_the_truncated_policy() -> None:
    hidden = torch.randn(5, 4, requires_grad=True)
    head, tokens = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4])
    config = SamplingConfig(top_p=1.0)
    log_probabilities(hidden, head, tokens, EVERY, config).sum().backward()
    p = torch.softmax(hidden.detach() @ head.T, -1)
    assert hidden.grad is not None
    assert torch.allclose(hidden.grad, head[tokens] - p @ head, atol=1e-5)


def test_special_tokens_are_never_thought() -> None:
    torch.manual_seed(0)
    logits = torch.zeros(2000, 24)
    logits[:, :16] = 1000
    for temperature in (0, 1):
        config = SamplingConfig(temperature=temperature)
        assert next_tokens(logits, thinkable(24), config).min() >= 16
