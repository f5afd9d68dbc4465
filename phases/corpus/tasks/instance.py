"""What a task generator returns."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TaskInstance:
    """A question and its only right answer. `depth` is the number of serial steps that the answer takes."""

    prompt: str
    answer: str
    depth: int

    def check(self, completion: str) -> bool:
        """Say whether a completion is the answer, white space around it aside."""
        return completion.strip() == self.answer


Generator = Callable[[np.random.Generator, float], TaskInstance]


def scaled(difficulty: float, low: int, high: int) -> int:
    """Return the integer in [low, high] that a difficulty in [0, 1] stands for."""
    return min(high, low + int(difficulty * (high - low + 1)))
