"""Fitness: ratios to the best parent, from counts and never from a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError
from phases.evomerge.config import FitnessWeights
from phases.evomerge.fitness import Measured, cost, outcome, terms

BEST = Measured(perplexity=100.0, accuracy=0.2, flops=1e6, bytes=4e6, position=(0.0,))


def test_the_best_parent_scores_one() -> None:
    assert outcome(BEST, BEST, FitnessWeights(), 100).fitness == pytest.approx(1)


def test_each_term_counts_by_its_share() -> None:
    better = Measured(perplexity=80.0, accuracy=0.3, flops=0.8e6, bytes=2e6)
    expected = 0.4 * 100 / 80 + 0.3 * 1.5 + 0.2 / 0.8 + 0.1 * 2
    assert outcome(better, BEST, FitnessWeights(), 100).fitness == pytest.approx(expected)


@given(st.floats(1, 1e6), st.floats(0, 1), st.floats(1, 1e9), st.floats(1, 1e9))
def test_no_term_passes_two_and_fitness_stays_finite(ppl: float, accuracy: float, flops: float, size: float) -> None:
    found = terms(Measured(ppl, accuracy, flops, size), BEST, 50)
    assert all(0 <= ratio <= 2 for ratio in found.values())


def test_two_hopeless_models_are_equal_in_accuracy() -> None:
    hopeless = Measured(100.0, 0.0, 1e6, 4e6)
    assert terms(hopeless, hopeless, 50)["accuracy"] == 1


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        FitnessWeights(perplexity=0.5)


def test_cost_counts_the_weights_of_the_model() -> None:
    config = PRESETS["nano"]
    _, size = cost(config, 2.0)
    counted = sum(p.numel() for p in TinyTitan(config).parameters())
    memory = 4 * 2 * config.d_model * config.memory.capacity
    assert (size - memory) / 4 == pytest.approx(counted, rel=0.01)
    assert cost(config, 2.0)[0] > cost(config, 1.5)[0]
