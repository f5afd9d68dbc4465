"""Serial arithmetic: five affine operations modulo five, a task that is built so that thoughts can work.

A prompt is a start value and five operations x -> a x + b (mod 5), one token each; the answer is the last value. Before
Quiet-STaR a small TinyTitan reads direct documents (prompt, answer) and worked ones with a thought between the markers:
at last in 30% the values after each operation, in 70% a useless copy of the operations: useful thoughts are in the
prior, but rarely. Quiet-STaR then sees prompts and answers only. What it can do is select a style, not invent one.

Shapes: B documents; ids from 16 on, in a vocabulary of the smallest size that a TinyTitan has.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.corpus.special import END, SPECIAL_IDS
from phases.quietstar.chain import END_ID, START_ID
from phases.quietstar.config import LearningConfig, ThoughtConfig
from phases.quietstar.internalise import Internaliser
from phases.quietstar.sources import Source
from phases.quietstar.thinker import Thinker
from phases.seeds import torch_rng
from phases.training.config import TrainingConfig
from phases.training.loop import train

OPERATIONS, MODULUS = 5, 5
VALUE, OPERATION, EQUALS = 16, 32, 60  # ids of 0, of x -> 1 x + 0, and of the sign before the answer
VALUES_SHARE, EARLY_SHARE = 0.3, 0.6
DOCUMENTS = 16  # of an update
RATE = 5e-4  # of the updates; at 1e-3 the style is found as soon, but the model forgets a tenth of its first operations
MANY_DOCUMENTS, PONDER_RATE = 256, 4e-3  # where ponder steps are learned: with 32 at 3e-3 the third took 3,500 updates
THOUGHTS = ThoughtConfig(parallel=4, length=OPERATIONS, lookahead=2, injection="all")


class Documents(NamedTuple):
    """Direct documents (B, OPERATIONS + 4): start, operations, sign, answer, end, end."""

    rows: Tensor
    values: Tensor  # (B, OPERATIONS), after each operation


def documents(count: int, generator: torch.Generator) -> Documents:
    """Draw direct documents. Multipliers are 1 to 4, so that every operation can be undone: nothing is lost early."""
    start = torch.randint(MODULUS, (count,), generator=generator)
    a = torch.randint(1, MODULUS, (count, OPERATIONS), generator=generator)
    b = torch.randint(MODULUS, (count, OPERATIONS), generator=generator)
    values, value = list[Tensor](), start
    for step in range(OPERATIONS):
        value = (a[:, step] * value + b[:, step]) % MODULUS
        values.append(value)
    signs = torch.full((count, 3), EQUALS)
    signs[:, 1:] = SPECIAL_IDS[END]
    rows = torch.cat([start[:, None] + VALUE, (a - 1) * MODULUS + b + OPERATION, signs[:, :1]], dim=1)
    return Documents(torch.cat([rows, value[:, None] + VALUE, signs[:, 1:]], dim=1), torch.stack(values, 1))


def worked(count: int, generator: torch.Generator, useful_share: float) -> Tensor:
    """Draw worked documents (B, 2 OPERATIONS + 6): a thought of partial results or of copied operations."""
    found = documents(count, generator)
    useful = torch.rand(count, 1, generator=generator) < useful_share
    thought = torch.where(useful, found.values + VALUE, found.rows[:, 1 : OPERATIONS + 1])
    markers = torch.tensor([[START_ID, END_ID]]).expand(count, -1)
    prompt, rest = found.rows[:, : OPERATIONS + 2], found.rows[:, OPERATIONS + 2 :]
    return torch.cat([prompt, markers[:, :1], thought, markers[:, 1:], rest], dim=1)


def titan_config() -> TitanConfig:
    """Return the architecture: about 130 thousand parameters, one ponder step."""
    return TitanConfig(
        vocab_size=272,
        d_model=64,
        n_layers=2,
        n_heads=4,
        hidden=128,
        tied=True,
        segment_len=32,
        train_ponder_steps=1,
        memory=MemoryConfig(hidden=16),
    )


def prior(seed: int, steps: int) -> TinyTitan:
    """Return a model that has read one batch of direct documents for three of worked ones.

    The last 200 steps have the shares of useful and useless thoughts that Quiet-STaR starts from. Before, more are
    useful, which only saves time: both styles have to be learned until they are written without errors.
    """
    torch.manual_seed(seed)
    model = TinyTitan(titan_config())
    # With the usual 0.02 a tied embedding of this width had learned no operation after 1,200 steps.
    nn.init.normal_(model.embedding.weight, std=titan_config().d_model ** -0.5)

    def batches(step: int) -> Tensor:
        generator = torch_rng(seed, "serial", "prior", step)
        if step % 4 == 0:
            return documents(64, generator).rows
        return worked(64, generator, VALUES_SHARE if step >= steps - 200 else EARLY_SHARE)

    _train(model, batches, steps, 64, 3e-3)
    return model


def quietstar(
    model: TinyTitan, seed: int, updates: int, learning: LearningConfig, source: Source | None = None
) -> Thinker:
    """Train a copy of `model` on prompts and answers, thinking everywhere."""
    torch.manual_seed(seed)
    thinker = Thinker(copy.deepcopy(model), THOUGHTS, learning, source=source)
    _train(thinker, _prompts(seed), updates, DOCUMENTS, RATE)
    return thinker


def shortened(thinker: Thinker, seed: int, updates: int) -> TinyTitan:
    """Return a copy without thoughts, after stages of `updates` each with one thought token less (Fast-Quiet-STaR)."""
    torch.manual_seed(seed)
    for length in range(OPERATIONS - 1, 0, -1):
        shorter = Thinker(
            copy.deepcopy(thinker.model), THOUGHTS.model_copy(update={"length": length}), thinker.learning
        )
        shorter.load_state_dict(thinker.state_dict())
        _train(shorter, _prompts(seed, length), updates, DOCUMENTS, RATE)
        thinker = shorter
    return reads_on(thinker.model, seed, updates)


def internalised(thinker: Thinker, seed: int, updates: int) -> TinyTitan:
    """Return a copy whose ponder steps have learned what its thoughts say."""
    torch.manual_seed(seed)
    pupil = Internaliser(thinker)
    _train(pupil, _prompts(seed, 0, MANY_DOCUMENTS), updates, MANY_DOCUMENTS, PONDER_RATE)
    return pupil.model


def ponders(model: TinyTitan, seed: int, updates: int) -> TinyTitan:
    """Train a copy with as many ponder steps on the same prompts and answers, without anybody's thoughts."""
    torch.manual_seed(seed)
    trained = TinyTitan(model.config.model_copy(update={"train_ponder_steps": OPERATIONS + 1}))
    trained.load_state_dict(model.state_dict())
    _train(trained, _prompts(seed, 0, MANY_DOCUMENTS), updates, MANY_DOCUMENTS, PONDER_RATE)
    return trained


def reads_on(model: TinyTitan, seed: int, updates: int) -> TinyTitan:
    """Train a copy without thoughts on as many prompts and answers."""
    trained = copy.deepcopy(model)
    _train(trained, _prompts(seed), updates, DOCUMENTS, RATE)
    return trained


@torch.no_grad()
def accuracy(thinker: Thinker, source: Source, seed: int, count: int = 500) -> float:
    """Return the share of answers that are the likeliest token behind a thought at the sign before them."""
    found = documents(count, torch_rng(seed, "serial", "test"))
    right = 0
    for rows in found.rows.split(100):
        seen = thinker.observe(rows, source)
        place = OPERATIONS + 1
        predicted = (seen.mixed[:, place, 0, 0] @ thinker.head_weight.T).argmax(-1)
        right += int((predicted == rows[:, place + 1]).sum())
    return right / count


@torch.no_grad()
def direct_accuracy(model: TinyTitan, seed: int, count: int = 500) -> float:
    """Return the share of answers that are the likeliest token right behind the prompt."""
    rows = documents(count, torch_rng(seed, "serial", "test")).rows
    predicted = model(rows[:, : OPERATIONS + 2])[0][:, -1].argmax(-1)
    return float((predicted == rows[:, OPERATIONS + 2]).float().mean())


def task_learning(policy_weight: float = 10.0) -> LearningConfig:
    """Return the weights of the losses on this task.

    REINFORCE is weighted up, as in the published code: thoughts begin at places where none ever stood, where they hurt
    at first, and with a weight of 1 the mixing head closes before the policy has found the useful ones.
    """
    return LearningConfig(initial_weight=0.5, policy_weight=policy_weight)


def _prompts(seed: int, stage: int = OPERATIONS, count: int = DOCUMENTS) -> Callable[[int], Tensor]:
    """Return the prompts and answers of each step; `stage` is how long thoughts are."""

    def batches(step: int) -> Tensor:
        return documents(count, torch_rng(seed, "serial", "thinking", stage, step)).rows

    return batches


def _train(
    model: nn.Module,
    batches: Callable[[int], Tensor],
    steps: int,
    rows: int,
    rate: float,
) -> None:
    config = TrainingConfig(
        steps=steps,
        batch_size=rows,
        learning_rate=rate,
        weight_decay=0.01,
        final_learning_rate=0.2,
        checkpoint_every=steps + 1,
        precision="fp32",
    )
    train(model, batches, config, on_step=lambda report: None, save=lambda state: None)
