"""What a TinyTitan carries from token to token: the attention window of each ponder step, and the memory.

Level n holds keys and values as of ponder step n + 1. A token that halted after N steps stands in every level beyond
N with what it had at step N; levels that no token in the window has reached do not exist, since they would equal the
highest one.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from phases.cognate.memory import MemoryState


class Level(NamedTuple):
    """The window at one ponder step: W tokens, those of the previous segment and of the current one so far."""

    keys: tuple[Tensor, ...]  # per layer (B, H, W, K)
    values: tuple[Tensor, ...]  # per layer (B, H, W, K)
    middle: Tensor  # (B, t, D), hidden states of the current segment where memory is read

    def last(self, tokens: int) -> "Level":
        """Return the level with the last `tokens` of the window, for the start of a new segment."""
        keys, values = (tuple(tensor[:, :, -tokens:] for tensor in tensors) for tensors in (self.keys, self.values))
        return Level(keys, values, self.middle[:, :0])


@dataclass(frozen=True)
class State:
    """Rows of a batch at the same position."""

    position: int  # tokens consumed
    levels: tuple[Level, ...]
    memory: MemoryState
    hidden: Tensor  # (B, t, D), final hidden states of the current segment, to be written at its end
    surprise: Tensor  # (B, t), nats of its tokens
    last: Tensor  # (B, 1, D), normalised output at the last token, which predicts the next; (B, 0, D) at the start
