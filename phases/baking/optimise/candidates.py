"""What was tried on a model, what of it stays, and which of that is best for a purpose.

A candidate stays if it loses no more than allowed and is faster than the fastest full-precision setting (the whole 95%
interval says so), or smaller on disk, or smaller in memory. Everything else is dropped and shown with the reason.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from phases.baking.optimise.session import SessionSettings
from phases.evomerge.pareto import fronts
from phases.settings import Settings

Target = Literal["latency", "size", "memory"]
_NOTICEABLE = 0.02  # share of bytes that is worth having


class Candidate(Settings):
    """A file with settings, as measured."""

    name: str
    file: str
    settings: SessionSettings
    seconds: float = Field(description="median CPU seconds of a run, one thread")
    speed: float = Field(description="times as fast as the fastest full-precision setting, median over rounds")
    speed_low: float
    speed_high: float
    bytes: int
    memory: int = Field(description="peak bytes above the bare runtime, in a fresh process")
    cosine: float = Field(description="mean over rows of outputs, against full precision")
    loss: float = Field(description="1 - the smallest cosine")
    samples: tuple[float, ...] = Field(default=(), repr=False)
    dropped: str = Field(default="", description="why it does not stay; empty where it does")

    def figure(self, target: Target) -> float:
        """Return what is to be as small as possible."""
        return {"latency": self.seconds, "size": float(self.bytes), "memory": float(self.memory)}[target]


def verdict(candidate: Candidate, baseline: Candidate, max_loss: float) -> Candidate:
    """Return the candidate with the reason why it is dropped, if it is."""
    reason = ""
    if not candidate.loss <= max_loss:
        reason = f"loses {candidate.loss:.3g}, more than {max_loss:g}"
    elif not (
        candidate.speed_low > 1
        or candidate.bytes < (1 - _NOTICEABLE) * baseline.bytes
        or candidate.memory < (1 - _NOTICEABLE) * baseline.memory
    ):
        reason = "neither faster than the fastest fp32 nor smaller"
    return candidate.model_copy(update={"dropped": reason})


def front(candidates: list[Candidate]) -> list[Candidate]:
    """Return those that nothing else beats in seconds, bytes, memory and loss at once; dropped ones are left out."""
    kept = [candidate for candidate in candidates if not candidate.dropped]
    points = np.array([[c.seconds, c.bytes, c.memory, c.loss] for c in kept], np.float64)
    return [kept[place] for place in fronts(points)[0]]


def best(candidates: list[Candidate], target: Target) -> Candidate:
    """Return the one of the front with the smallest figure; of equal ones that which loses least.

    The first of `candidates` is the baseline. For latency another has to be faster by its whole interval: one that
    stays for its bytes and was a little faster by chance is not.
    """
    baseline, *others = candidates
    proven = [baseline, *(each for each in others if target != "latency" or each.speed_low > 1)]
    return min(front(proven), key=lambda candidate: (candidate.figure(target), candidate.loss))
