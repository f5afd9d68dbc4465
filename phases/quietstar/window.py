"""What the tokens of parallel thoughts see: a frozen prefix, each up to its own place, and the thought so far.

A `Stage` is a place in a text at which thoughts can begin: the window and the memory that the next token would see.
Thoughts stay in that stage whatever their length: they complete no segment and write no memory, so that nothing of
them remains when the text goes on. `Thoughts` is their cache; like the text's own windows it holds keys and values of
each ponder step, in which tokens that have halted stand as of the step at which they did.

Shapes: B rows, M thoughts of a row, A new tokens of each, W places of the prefix, H heads, K head dimension, D = H * K.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from phases.cognate.memory import CONV_WIDTH, MemoryState
from phases.cognate.places import Group, Places
from phases.cognate.state import State
from phases.cognate.titan import Segment, TinyTitan, at_step
from phases.quietstar.attention import Block, attend, blocks

_ROOM = 16  # tokens of a thought that there is room for at first


class Seen(Protocol):
    """The window of a text, as far as what comes behind it is concerned."""

    def seen(self, step: int, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, W, K) at a ponder step."""

    def seen_inputs(self, step: int) -> Tensor:
        """Return what the memory's convolution needs, (B, W, D)."""


@dataclass(frozen=True)
class Stage:
    """Where thoughts begin. A thought behind the text's token i sees `i - origin + 1` places of the window."""

    window: Seen
    memory: MemoryState
    origin: int  # position in the text of the window's first place

    @classmethod
    def of_segment(cls, segment: Segment, segment_len: int) -> "Stage":
        """Return the stage of thoughts behind any token of a training segment but its last."""
        return cls(segment.window, segment.memory, max(0, segment.start - segment_len))

    @classmethod
    def of_state(cls, state: State) -> "Stage":
        """Return the stage of thoughts behind the last token that a state has read."""
        return cls(state.window, state.memory, state.position - state.window.past)


class Thoughts:
    """The window of B x M thoughts, all of which have read equally many tokens. `positions` (B, M) are their places."""

    def __init__(self, stage: Stage, positions: Tensor) -> None:
        self.stage, self.positions = stage, positions
        self.active: Tensor | None = None  # (B, M * A), see `UnrolledWindow`
        self.length = 0  # tokens read
        self.reach = positions - stage.origin + 1  # places of the prefix that each sees
        self._new = 0  # tokens being read
        self._blocks: list[Block] = []
        self._prefix: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by step and layer
        self._own: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by step and layer, (B, M, H, C, K)
        self._inputs: dict[int, Tensor] = {}  # by step, (B, M, 3 + A, D), of the latest tokens and three before them

    def read(self, model: TinyTitan, x: Tensor) -> Tensor:
        """Read the embedded tokens `x` (B, M, A, D) on and return their normalised outputs, in the same shape.

        All tokens run all ponder steps; the output is that of the step at which a token halts.
        """
        batch, thoughts, new, _ = x.shape
        if new != self._new:
            self._new, self._blocks = new, []
        count = torch.arange(batch * thoughts * new, device=x.device)
        here = Places(
            rows=count // (thoughts * new),
            columns=count % (thoughts * new),
            shape=(batch, thoughts * new),
            groups=(Group(slice(0, batch), slice(0, len(count)), thoughts * new, None),),
        )
        first = self.positions + 1 + self.length
        at = (first.unsqueeze(-1) + torch.arange(new, device=x.device)).flatten()
        ran = model.unroll(x.flatten(0, 2), here, at, self, self.stage.memory)
        self.length += new
        outputs: Tensor = model.norm(at_step(ran.hiddens, ran.steps))
        return outputs.view(x.shape)

    def attend(self, step: int, layer: int, places: Places, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store `k`, `v` (N, H, K) and return what `q` attends to, (N, D); N = B * M * A."""
        q, k, v = (x.unflatten(0, (*self.positions.shape, self._new)).transpose(2, 3) for x in (q, k, v))
        if self.active is not None:
            running = self.active.view(*self.positions.shape, 1, self._new, 1)
            k_then, v_then = (x[:, :, :, -self._new :] for x in self._own[step - 1, layer])
            k, v = torch.where(running, k, k_then), torch.where(running, v, v_then)
        if (step, layer) not in self._own:
            self._prefix[step, layer] = self.stage.window.seen(step, layer)
        before = self._own.get((step, layer))
        self._own[step, layer] = (k, v) if before is None else (longer(before[0], k), longer(before[1], v))
        attended = self.merged(q, self._own[step, layer], self._prefix[step, layer])
        return attended.transpose(2, 3).flatten(0, 2).flatten(1)

    def merged(self, q: Tensor, own: tuple[Tensor, Tensor], prefix: tuple[Tensor, Tensor]) -> Tensor:
        """Return what `q` (B, M, H, A, K) attends to: `own` tokens (B, M, H, C, K) and `prefix` (B, H, W, K)."""
        if not self._blocks:
            self._blocks = blocks(self.reach, self._new, q)
        return attend(q, *own, *prefix, self._blocks)

    def latest(self, step: int, places: Places, x: Tensor) -> list[Tensor]:
        """Store `x` (N, D) and return, for each token, those of the tokens 3, 2, 1 and 0 places back, (N, D) each."""
        new = own = x.unflatten(0, (*self.positions.shape, self._new))  # (B, M, A, D)
        if self.active is not None:
            running = self.active.view(*self.positions.shape, self._new, 1)
            new = torch.where(running, own, self._inputs[step - 1][:, :, -self._new :])
        before = self._inputs[step] if step in self._inputs else self._inputs_before(step)
        self._inputs[step] = torch.cat([before[:, :, 1 - CONV_WIDTH :], new], dim=2)
        back = [self._inputs[step][:, :, i : i + self._new] for i in range(CONV_WIDTH - 1)]
        return [part.flatten(0, 2) for part in back] + [x]

    def _inputs_before(self, step: int) -> Tensor:
        """Return the inputs of the three tokens before each thought, (B, M, 3, D); zeros before the text."""
        inputs = self.stage.window.seen_inputs(step)
        columns = self.reach.unsqueeze(-1) + torch.arange(1 - CONV_WIDTH, 0, device=inputs.device)  # (B, M, 3)
        rows = torch.arange(inputs.shape[0], device=inputs.device).view(-1, 1, 1)
        return inputs[rows, columns.clamp_min(0)] * (columns >= 0).unsqueeze(-1)


def longer(cache: Tensor, new: Tensor) -> Tensor:
    """Return `new` (..., A, K) behind `cache` (..., C, K). Without a graph there is room behind it, used in place.

    Room doubles when it is full, so that a token's cost does not grow with those before it. The caller may not use
    `cache` again.
    """
    if torch.is_grad_enabled() and (cache.requires_grad or new.requires_grad):
        return torch.cat([cache, new], dim=-2)
    length, wanted = cache.shape[-2], cache.shape[-2] + new.shape[-2]
    room = cache.stride(-3) // cache.shape[-1]
    if cache.stride(-2) != cache.shape[-1] or room < wanted:
        grown = cache.new_empty(*cache.shape[:-2], max(_ROOM, 2 * wanted), cache.shape[-1])
        grown[..., :length, :] = cache
        cache = grown[..., :length, :]
    whole = cache.as_strided((*cache.shape[:-2], wanted, cache.shape[-1]), cache.stride())
    whole[..., length:, :] = new
    return whole
