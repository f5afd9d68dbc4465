"""Sums and differences of one to four digits. The depth is the number of digits, which is how far carries can run."""

import numpy as np

from phases.corpus.tasks.instance import TaskInstance, scaled


def generate(rng: np.random.Generator, difficulty: float) -> TaskInstance:
    """Draw a sum or a difference; both operands have the number of digits that the difficulty sets."""
    digits = scaled(difficulty, 1, 4)
    a, b = (int(rng.integers(10**digits)) for _ in range(2))
    if rng.random() < 0.5:
        return TaskInstance(f"{a} + {b} =", str(a + b), digits)
    return TaskInstance(f"{a} - {b} =", str(a - b), digits)
