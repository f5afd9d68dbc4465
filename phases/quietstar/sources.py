"""Where the tokens of thoughts come from: the model itself, or a control that must not help.

`sampled` thinks without a graph, token by token, with the thoughts' own cache. The others are the tests of whether
thoughts matter: a token without meaning in their place (the compute alone), random tokens, the thoughts of another row.

Shapes: B rows, M thoughts of a row, n tokens of each.
"""

from typing import Protocol

import torch
from torch import Tensor

from phases.corpus.special import SPECIAL_IDS, SPECIAL_TOKENS
from phases.quietstar.chain import START_ID
from phases.quietstar.config import SamplingConfig
from phases.quietstar.sampling import next_tokens, thinkable
from phases.quietstar.window import Stage, Thoughts

PAUSE_ID = SPECIAL_IDS["<|reserved0|>"]
_CHUNK_BYTES = 1 << 26


class Thinking(Protocol):
    """What sampling needs of a `Thinker`."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (..., D) of `tokens` (...)."""

    def read(self, window: Thoughts, embedded: Tensor) -> Tensor:
        """Return the outputs of chain tokens, (B, M, A, D) for (B, M, A, D)."""

    @property
    def head_weight(self) -> Tensor:
        """Return the head (V, D)."""


class Source(Protocol):
    """Gives thoughts (B, M, n) behind `positions` (B, M)."""

    def __call__(self, thinker: Thinking, stage: Stage, positions: Tensor, length: int) -> Tensor: ...


@torch.no_grad()
def think(thinker: Thinking, stage: Stage, positions: Tensor, length: int, sampling: SamplingConfig) -> Tensor:
    """Return sampled thoughts (B, M, `length`) behind `positions` (B, M)."""
    head, window = thinker.head_weight, Thoughts(stage, positions)
    allowed = thinkable(len(head), head.device)
    token, found = torch.full_like(positions, START_ID), list[Tensor]()
    for _ in range(length):
        outputs = thinker.read(window, thinker.embed(token).unsqueeze(2)).flatten(0, 2)
        parts = outputs.split(max(1, _CHUNK_BYTES // (4 * len(head))))
        token = torch.cat([next_tokens(part @ head.T, allowed, sampling) for part in parts]).view_as(positions)
        found.append(token)
    return torch.stack(found, dim=2)


def sampled(sampling: SamplingConfig) -> Source:
    """Return the source of the model's own thoughts."""

    def source(thinker: Thinking, stage: Stage, positions: Tensor, length: int) -> Tensor:
        return think(thinker, stage, positions, length, sampling)

    return source


def pause(thinker: Thinking, stage: Stage, positions: Tensor, length: int) -> Tensor:
    """Return thoughts of one reserved token, which say nothing."""
    return torch.full((*positions.shape, length), PAUSE_ID, device=positions.device)


def random(thinker: Thinking, stage: Stage, positions: Tensor, length: int) -> Tensor:
    """Return thoughts of random ordinary tokens."""
    drawn = torch.randint(len(SPECIAL_TOKENS), len(thinker.head_weight), (*positions.shape, length))
    return drawn.to(positions.device)


def shuffled(sampling: SamplingConfig) -> Source:
    """Return the source of thoughts that were thought about another row."""

    def source(thinker: Thinking, stage: Stage, positions: Tensor, length: int) -> Tensor:
        return think(thinker, stage, positions, length, sampling).roll(1, 0)

    return source
