"""Measuring a candidate: merge it into a scratch model, read text, answer questions."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phases.cognate.generate import right_tokens
from phases.cognate.loading import best_device
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.errors import NumericalError
from phases.evomerge.candidate import Parents, Positions, build
from phases.evomerge.errors import MergeError
from phases.evomerge.fitness import FitnessRows, Measured, cost
from phases.evomerge.ledger import Ledger, Lost
from phases.evomerge.space import Genome
from phases.seeds import child_seed

VERSION = 1  # part of the ledger's keys: raise it when the same genome would be measured differently


@dataclass(frozen=True)
class Samples:
    """What was seen of a model, before it is summed up."""

    config: TitanConfig
    nats: npt.NDArray[np.float64]  # (streams,), mean per token
    steps: float  # mean ponder steps
    right: npt.NDArray[np.int64]  # (questions,), answer tokens that are right
    tokens: npt.NDArray[np.int64]  # (questions,), answer tokens

    def measured(self) -> Measured:
        """Return the four quantities of fitness."""
        flops, size = cost(self.config, self.steps)
        perplexity = math.exp(min(float(self.nats.mean()), 50.0))
        return Measured(perplexity, float(self.right.sum() / self.tokens.sum()), flops, size)

    def resampled(self, streams: npt.NDArray[np.int64], questions: npt.NDArray[np.int64]) -> Measured:
        """Return the quantities of the streams and questions with these indices, for a bootstrap."""
        part = Samples(self.config, self.nats[streams], self.steps, self.right[questions], self.tokens[questions])
        return part.measured()


@dataclass(frozen=True)
class Race:
    """The share of the data that candidates are measured on first, and the perplexity there from which that is all."""

    share: float
    perplexity: float


@dataclass(frozen=True)
class Evaluator:
    """Merges and measures. Everything that decides a measurement is in here, so `key` names it."""

    parents: Parents
    rows: FitnessRows
    seed: int
    guard: float
    fingerprint: str  # of the parents' weights and of the data
    race: Race | None = None

    def key(self, expressed: Genome) -> str:
        """Return the name of a candidate's measurement: a hash of its expressed genes and of all else that counts."""
        race = None if self.race is None else [self.race.share, self.race.perplexity]
        content = [VERSION, self.fingerprint, self.seed, self.guard, race, sorted(expressed.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def build(self, genome: Genome) -> tuple[TitanConfig, dict[str, Tensor]]:
        """Return a candidate's configuration and tensors. Raises `MergeError` for a refused merge."""
        return build(genome, self.parents, child_seed(self.seed, "evomerge", "masks"), self.guard)

    def measure(self, genome: Genome, positions: Positions) -> Measured:
        """Return the measurement. Raises `MergeError` for a refused merge and `NumericalError` for a broken model."""
        config, tensors = self.build(genome)
        found = None
        if self.race is not None:
            few = sample_model(config, tensors, self.rows.part(self.race.share)).measured()
            found = few if few.perplexity > self.race.perplexity else None
        found = found or sample_model(config, tensors, self.rows).measured()
        return Measured(**(vars(found) | {"position": positions.of(tensors)}))

    def recorded(self, expressed: Genome, positions: Positions, ledger: Ledger) -> Measured:
        """Return the measurement from the ledger, or make it and put it there.

        Raises `MergeError` with the recorded reason for a candidate that was lost before.
        """
        key = self.key(expressed)
        entry = ledger.get(key)
        if isinstance(entry, Lost):
            raise MergeError(f"lost before: {entry.reason}")
        if entry is None:
            entry = self.measure(expressed, positions)
            ledger.put(key, entry)
        return entry


@torch.inference_mode()
def sample_model(config: TitanConfig, tensors: Mapping[str, Tensor], rows: FitnessRows) -> Samples:
    """Measure a model given as tensors. Raises `NumericalError` where its loss is not finite."""
    model = scratch_model(config, tensors)
    evaluation = model.evaluate(torch.from_numpy(rows.text).to(model.embedding.weight.device))
    nats = evaluation.nll.double().mean(1).cpu().numpy()
    if not np.isfinite(nats).all():
        raise NumericalError("candidate: its cross-entropy is not finite")
    right = right_tokens(model, rows.questions.prompts, rows.questions.answers)
    counts = np.array([[sum(row), len(row)] for row in right], np.int64)
    return Samples(config, nats, float(evaluation.steps.double().mean()), counts[:, 0], counts[:, 1])


def scratch_model(config: TitanConfig, tensors: Mapping[str, Tensor]) -> TinyTitan:
    """Return a model in evaluation mode that uses `tensors` themselves, moved to a GPU where there is one."""
    with torch.device("meta"):
        model = TinyTitan(config)
    model.load_state_dict(dict(tensors), assign=True)
    return model.eval().to(best_device())
