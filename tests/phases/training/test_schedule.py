"""The learning rate's shape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases.training.config import TrainingConfig
from phases.training.schedule import learning_rate


def test_the_four_corners() -> None:
    config = TrainingConfig(steps=110, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(9, config) == learning_rate(10, config) == 1.0
    assert learning_rate(60, config) == pytest.approx(0.55)
    assert learning_rate(110, config) == pytest.approx(0.1)


@given(st.integers(1, 300), st.integers(0, 400))
def test_rises_then_falls_and_stays_in_bounds(steps: int, warmup: int) -> None:
    config = TrainingConfig(steps=steps, warmup_steps=warmup, learning_rate=2.0, final_learning_rate=0.25)
    rates = [learning_rate(step, config) for step in range(steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert all(rate >= 0.5 for rate in rates[warmup:])
