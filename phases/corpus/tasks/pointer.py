"""Find-root pointer chasing: follow arrows between letters until one points at itself."""

from itertools import pairwise

import numpy as np

from phases.corpus.tasks.instance import TaskInstance, scaled

NODES = "abcdefghij"


def generate(rng: np.random.Generator, difficulty: float) -> TaskInstance:
    """Draw a chain of one to six arrows; the other nodes hang on it or on each other, so that none can be skipped."""
    depth = scaled(difficulty, 1, 6)
    order = rng.permutation(list(NODES))
    chain, others = order[: depth + 1], order[depth + 1 :]
    target = {chain[-1]: chain[-1]} | dict(pairwise(chain))
    for node in others:
        target[node] = rng.choice(list(target))
    arrows = " ".join(f"{node}>{target[node]}" for node in rng.permutation(list(NODES)))
    return TaskInstance(f"{arrows} root of {chain[0]} =", str(chain[-1]), depth)
