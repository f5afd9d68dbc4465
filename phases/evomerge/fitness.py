"""From measurements of a candidate to one number, and the data that it is measured on.

Every term is a ratio to the best parent, so a candidate that equals it scores 1 whatever the weights. Speed and memory
come from counted operations and bytes and never from a clock: candidates of one shape would differ by noise alone.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from phases.cognate.titan import TitanConfig
from phases.corpus.packed import Corpus
from phases.corpus.tasks import TASKS, task_instances
from phases.corpus.tokenizer import encode
from phases.errors import ArtifactError
from phases.evomerge.config import FitnessData, FitnessWeights
from phases.evomerge.engine import Outcome
from phases.seeds import child_seed

_MOST = 2.0  # a ratio beyond this counts as this: one term must not buy the loss of another


@dataclass(frozen=True)
class Measured:
    """What was measured of a candidate."""

    perplexity: float  # per token
    accuracy: float  # share of answer tokens that greedy decoding gets right, given those before
    flops: float  # per token, counted from the mean ponder steps
    bytes: float  # of weights and of a stream's memory
    position: tuple[float, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether all four quantities are numbers."""
        return all(map(math.isfinite, (self.perplexity, self.accuracy, self.flops, self.bytes)))


@dataclass(frozen=True)
class Questions:
    """Prompts and answers as token ids."""

    prompts: list[list[int]]
    answers: list[list[int]]


@dataclass(frozen=True)
class FitnessRows:
    """The data of a fitness: streams of text (streams, length + 1) and questions."""

    text: npt.NDArray[np.int64]
    questions: Questions

    @property
    def answer_tokens(self) -> int:
        """The number of tokens that answers have, with the one that ends each."""
        return sum(len(answer) + 1 for answer in self.questions.answers)

    def part(self, share: float) -> "FitnessRows":
        """Return the first streams and every so many-th question."""
        step = max(1, round(1 / share))
        questions = Questions(self.questions.prompts[::step], self.questions.answers[::step])
        return FitnessRows(self.text[: max(1, round(share * len(self.text)))], questions)


def fitness_rows(corpus: Corpus, data: FitnessData, split: str, seed: int, skip: int = 0) -> FitnessRows:
    """Return tokens of a split behind the first `skip`, cut into streams, and instances of every task from that split.

    Raises `ArtifactError` where the split is too short.
    """
    tokens = corpus.tokens(split)[skip : skip + data.text_tokens]
    length = len(tokens) // data.streams
    if length < 2:
        raise ArtifactError(
            f"{split} split has {len(tokens)} tokens behind the first {skip}, too few for {data.streams} streams"
        )
    text = tokens[: length * data.streams].reshape(data.streams, length).astype(np.int64)
    prompts, answers = list[list[int]](), list[list[int]]()
    for task in sorted(TASKS):
        for instance in task_instances(task, split, data.task_instances, child_seed(seed, "evomerge", "questions")):
            prompts.append(corpus.prompt_ids(instance.prompt))
            answers.append(encode(corpus.tokenizer, instance.answer))
    return FitnessRows(text, Questions(prompts, answers))


def cost(config: TitanConfig, steps: float) -> tuple[float, float]:
    """Return the FLOPs per token at `steps` mean ponder steps, and the bytes of weights and one stream's memory.

    A multiply-add is two FLOPs. Attention over the window is left out: it is the same for all candidates.
    """
    d, memory = config.d_model, config.memory
    block = 4 * d * d + 3 * d * config.hidden
    recall = 4 * d * d + 2 * d * memory.hidden
    head = config.vocab_size * d
    weights = config.n_layers * block + recall + head * (1 if config.tied else 2)
    per_token = 2 * (steps * (config.n_layers * block + recall) + head)
    return per_token, 4 * (weights + 2 * d * memory.capacity)


def terms(measured: Measured, best_parent: Measured, questions: int) -> dict[str, float]:
    """Return each term as a ratio to the best parent, higher is better, at most 2.

    Accuracies count as at least one answer token in `questions`, so that two hopeless models are equal.
    """
    least = 1 / max(questions, 1)
    ratios = {
        "perplexity": best_parent.perplexity / measured.perplexity,
        "accuracy": max(measured.accuracy, least) / max(best_parent.accuracy, least),
        "speed": best_parent.flops / measured.flops,
        "memory": best_parent.bytes / measured.bytes,
    }
    return {name: min(ratio, _MOST) for name, ratio in ratios.items()}


def fitness(measured: Measured, best_parent: Measured, weights: FitnessWeights, questions: int) -> float:
    """Return the scalar fitness: the weighted sum of the terms."""
    ratios = terms(measured, best_parent, questions)
    return sum(float(getattr(weights, name)) * ratio for name, ratio in ratios.items())


def best_of(parents: Mapping[str, Measured], weights: FitnessWeights, questions: int) -> str:
    """Return the parent that fitness is relative to: the one that the others beat least."""

    def beaten_by(name: str) -> float:
        return max(fitness(other, parents[name], weights, questions) for other in parents.values())

    return min(parents, key=beaten_by)


def outcome(measured: Measured, best_parent: Measured, weights: FitnessWeights, questions: int) -> Outcome:
    """Return what the search is told: the scalar fitness, and the four quantities themselves as objectives."""
    metrics = {name: value for name, value in asdict(measured).items() if name != "position"}
    return Outcome(
        fitness=fitness(measured, best_parent, weights, questions),
        objectives=(measured.perplexity, -measured.accuracy, measured.flops, measured.bytes),
        position=measured.position,
        metrics=metrics,
    )
