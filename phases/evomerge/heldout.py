"""The winner against its parents and their plain average, on data that fitness never saw."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phases.cognate.titan import TitanConfig
from phases.corpus.packed import Corpus
from phases.evomerge.config import EvoMergeConfig
from phases.evomerge.evaluate import Samples, sample_model
from phases.evomerge.fitness import FitnessRows, Measured, best_of, fitness, fitness_rows
from phases.seeds import child_seed, numpy_rng

Model = tuple[TitanConfig, Mapping[str, Tensor]]


@dataclass(frozen=True)
class HeldOut:
    """Samples of all that is compared. `best` names the parent that fitness is relative to."""

    config: EvoMergeConfig
    winner: Samples
    average: Samples
    parents: dict[str, Samples]
    best: str
    answer_tokens: int

    def fitness(self, measured: Measured, best_parent: Measured | None = None) -> float:
        """Return the scalar fitness of `measured`."""
        reference = best_parent or self.parents[self.best].measured()
        return fitness(measured, reference, self.config.fitness, self.answer_tokens)

    def measured(self, of: str) -> Measured:
        """Return the measurement of the `winner`, the `average` or the `best_parent`.

        Raises `KeyError` for anything else.
        """
        everyone = {"winner": self.winner, "average": self.average, "best_parent": self.parents[self.best]}
        return everyone[of].measured()

    def gain_interval(self, seed: int, resamples: int = 1000) -> tuple[float, float]:
        """Return the 95% bootstrap interval of the winner's fitness minus the best parent's.

        Streams and questions are resampled, the same for all models.
        """
        rng = numpy_rng(seed, "evomerge", "bootstrap")
        reference, gains = self.parents[self.best], []
        for _ in range(resamples):
            streams = rng.integers(len(reference.nats), size=len(reference.nats))
            questions = rng.integers(len(reference.right), size=len(reference.right))
            base = reference.resampled(streams, questions)
            gains.append(self.fitness(self.winner.resampled(streams, questions), base) - 1)
        low, high = np.quantile(gains, [0.025, 0.975])
        return float(low), float(high)


def held_out(winner: Model, parents: Mapping[str, Model], corpus: Corpus, config: EvoMergeConfig, seed: int) -> HeldOut:
    """Measure everything on text of the test split and on questions of its own."""
    rows = held_out_rows(corpus, config, seed)
    samples = {role: sample_model(titan, tensors, rows) for role, (titan, tensors) in parents.items()}
    measured = {role: found.measured() for role, found in samples.items()}
    best = best_of(measured, config.fitness, rows.answer_tokens)
    titan, like = parents[best]
    average = {name: torch.stack([tensors[name] for _, tensors in parents.values()]).mean(0) for name in like}
    return HeldOut(
        config=config,
        winner=sample_model(*winner, rows),
        average=sample_model(titan, average, rows),
        parents=samples,
        best=best,
        answer_tokens=rows.answer_tokens,
    )


def held_out_rows(corpus: Corpus, config: EvoMergeConfig, seed: int) -> FitnessRows:
    """Return the data of the claims."""
    return fitness_rows(corpus, config.held_out, "test", child_seed(seed, "evomerge", "held out"))
