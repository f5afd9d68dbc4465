"""Composition of permutations of four letters: a word problem that needs as many serial steps as there are factors."""

import numpy as np

from phases.corpus.tasks.instance import TaskInstance, scaled

LETTERS = "abcd"


def generate(rng: np.random.Generator, difficulty: float) -> TaskInstance:
    """Draw one to six permutations. Each is written as the images of a, b, c, d and applied from left to right."""
    depth = scaled(difficulty, 1, 6)
    factors = ["".join(rng.permutation(list(LETTERS))) for _ in range(depth)]
    state = LETTERS
    for factor in factors:
        state = "".join(factor[LETTERS.index(letter)] for letter in state)
    return TaskInstance(f"compose {' '.join(factors)} =", state, depth)
