"""TinyTitan: a decoder-only transformer that thinks for as long as a token needs and remembers beyond its window.

A ponder step is one pass through the whole stack; all steps share its weights and differ in an embedding (Universal
Transformer, Dehghani et al. 2018). A halting head decides per token when to stop, and what has stopped is not computed
any further. Attention reaches over the current segment and the one before (`window.py`); what is older is in the
long-term memory (`memory.py`), read once per ponder step in the middle of the stack and written at the end of each
segment. So the cost per token does not grow with the text, and reading token by token computes the same as reading all
at once. The surprise of a token is known once it is read, since the logits before it are kept: nothing is written late.

Shapes: B rows, T tokens of a piece (part of one segment), D model width, V vocabulary, N tokens that a step computes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from phases.cognate import places
from phases.cognate.blocks import Block
from phases.cognate.halting import HaltingHead, bce_halting_loss, halting_targets, halts
from phases.cognate.memory import LongTermMemory, MemoryConfig, MemoryState
from phases.cognate.norm import RMSNorm
from phases.cognate.places import Places
from phases.cognate.rope import Rotation, rotation
from phases.cognate.state import State
from phases.cognate.window import CachedWindow, SegmentWindow, UnrolledWindow, Window
from phases.errors import ConfigError
from phases.settings import Settings
from phases.training.losses import linear_cross_entropy


class TitanConfig(Settings):
    """The architecture. Thresholds and capacities are the documented ones; sizes come from `presets.py`."""

    vocab_size: int = Field(ge=272, description="rows of the embedding")
    d_model: int = Field(ge=2)
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    hidden: int = Field(ge=1, description="width of the SwiGLU")
    tied: bool = Field(description="whether the head is the embedding")
    segment_len: int = Field(default=128, ge=4, description="tokens; attention reaches over two segments")
    max_ponder_steps: int = Field(default=8, ge=1, description="most passes through the stack per token")
    train_ponder_steps: int = Field(default=2, ge=1, description="passes per token in training, all supervised")
    halt_threshold: float = Field(default=0.95, gt=0, lt=1, description="cumulative halting probability to stop at")
    halt_tolerance: float = Field(default=0.02, ge=0, description="nats that a further step must gain to be worth it")
    halting_weight: float = Field(default=0.1, ge=0, description="of the halting loss (documented penalty)")
    rope_theta: float = Field(default=10_000.0, gt=0)
    memory: MemoryConfig = MemoryConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TitanConfig":
        if self.d_model % (2 * self.n_heads):
            fix = f"make d_model a multiple of {2 * self.n_heads}"
            raise ConfigError.of("d_model", self.d_model, f"not divisible into {self.n_heads} heads of even width", fix)
        if self.segment_len % self.memory.chunk:
            fix = f"make segment_len a multiple of memory.chunk = {self.memory.chunk}"
            raise ConfigError.of("segment_len", self.segment_len, "does not divide into memory chunks", fix)
        if self.train_ponder_steps > self.max_ponder_steps:
            fix = f"use at most max_ponder_steps = {self.max_ponder_steps}"
            raise ConfigError.of("train_ponder_steps", self.train_ponder_steps, "more than the model has", fix)
        return self


@dataclass(frozen=True)
class Reading:
    """What a pass over a text computed."""

    outputs: Tensor  # (B, T, D), normalised; times the head they are logits
    surprise: Tensor  # (B, T), nats of each token given those before it; 0 for the first of all
    steps: Tensor  # (B, T), int64, ponder steps that each token ran
    hits: Tensor  # (B, T), share of attention that the first step's memory read gave to memory
    state: State


@dataclass(frozen=True)
class Evaluation:
    """Per-token measurements of a text."""

    nll: Tensor  # (B, T), nats
    steps: Tensor  # (B, T)
    hits: Tensor  # (B, T)
    state: State


@dataclass(frozen=True)
class Unrolled:
    """What S ponder steps computed of tokens (B, T); all ran every step."""

    hiddens: Tensor  # (S, B, T, D)
    halting: Tensor  # (S, B, T), logits
    steps: Tensor  # (B, T), int64, those that each token would have run at inference
    hits: Tensor  # (B, T), of the first step's memory read


@dataclass(frozen=True)
class Segment:
    """A segment of training rows, with the window and the memory that tokens behind it would see."""

    start: int  # position of its first token
    ran: Unrolled
    outputs: Tensor  # (B, T, D), normalised, of the step at which each token halts
    loss: Tensor  # scalar, its share of the rows' cross-entropy
    losses: Tensor  # (S, B, T), nats, without gradient
    window: SegmentWindow
    memory: MemoryState


class TinyTitan(nn.Module):
    """The model of phase 1. Training runs `train_ponder_steps`; at inference each token halts there or before."""

    def __init__(self, config: TitanConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.step_embedding = nn.Parameter(torch.zeros(config.max_ponder_steps, config.d_model))
        self.blocks = nn.ModuleList(
            Block(config.d_model, config.n_heads, config.hidden) for _ in range(config.n_layers)
        )
        self.memory = LongTermMemory(config.d_model, config.memory)
        self.norm = RMSNorm(config.d_model)
        self.halting = HaltingHead(config.d_model)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._initialise()

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix (V, D)."""
        weight: Tensor = (self.head or self.embedding).weight
        return weight

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the blocks' matrices: what Muon is for, as embedding, head and memory are not."""
        return [parameter for parameter in self.blocks.parameters() if parameter.dim() == 2]

    def empty_state(self, batch: int) -> State:
        """Return the state of `batch` rows that have read nothing."""
        c, like = self.config, self.embedding.weight
        window = CachedWindow(like, batch, c.train_ponder_steps, c.n_layers, c.n_heads, c.segment_len)
        outputs = like.new_zeros(batch, c.segment_len, c.d_model)
        return State(window, self.memory.empty(batch, like.device, like.dtype), outputs, outputs[:, :, 0].clone(), None)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return next-token logits (B, T, V) and the state after `tokens` (B, T), halting token by token."""
        reading = self.read(tokens, state)
        return reading.outputs @ self.head_weight.T, reading.state

    @torch.no_grad()
    def read(self, tokens: Tensor, state: State | None = None) -> Reading:
        """Read `tokens` (B, T), halting token by token, on from `state`, which is updated in place.

        The logits of the next token are in the state's `prediction`; those in between are never held all at once.
        """
        state = state or self.empty_state(tokens.shape[0])
        parts = list[tuple[Tensor, Tensor, Tensor, Tensor]]()
        for piece in self._pieces(tokens, state.position):
            hidden, steps, hits = self._ponder(piece, state)
            outputs = self.norm(hidden)
            surprise = self._surprise(piece, outputs, state.prediction)
            state.prediction = outputs[:, -1] @ self.head_weight.T
            self._absorb(state, outputs, surprise)
            parts.append((outputs, surprise, steps, hits))
        outputs, surprise, steps, hits = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return Reading(outputs, surprise, steps, hits, state)

    def evaluate(self, rows: Tensor, state: State | None = None) -> Evaluation:
        """Measure `rows` (B, T + 1), inputs and targets shifted by one, with adaptive halting."""
        reading = self.read(rows[:, :-1], state)
        assert reading.state.prediction is not None
        last = _nll(reading.state.prediction, rows[:, -1:])
        return Evaluation(torch.cat([reading.surprise[:, 1:], last], 1), reading.steps, reading.hits, reading.state)

    def loss(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss of `rows` (B, T + 1) and metrics.

        The mean over ponder steps of the cross-entropy (deep supervision) plus the halting head's regression on
        whether a further step would have gained anything. Every token runs every step, so that each is supervised, but
        other tokens and the memory see it as of the step at which it would halt, as they will at inference.
        """
        return self.loss_of(list(self.segments(rows)))

    def loss_of(self, segments: Sequence[Segment]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss and metrics of rows whose `segments` are these."""
        total = sum((segment.loss for segment in segments), torch.zeros((), device=self.step_embedding.device))
        return self.with_halting(total, segments)

    def with_halting(self, loss: Tensor, segments: Sequence[Segment]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a `loss` of what `segments` predict with that of when they halt added, and metrics."""
        losses = torch.cat([segment.losses for segment in segments], dim=-1)
        halting = torch.cat([segment.ran.halting for segment in segments], dim=-1)
        steps = torch.cat([segment.ran.steps for segment in segments], dim=-1)
        hits = torch.cat([segment.ran.hits for segment in segments], dim=-1)
        halting_loss = bce_halting_loss(halting.float(), halting_targets(losses, self.config.halt_tolerance))
        metrics = {
            "cross_entropy": at_step(losses, steps).mean(),
            "halting_loss": halting_loss.detach(),
            "ponder_steps": steps.float().mean(),
            "memory_hit_rate": hits.mean(),
        }
        return loss + self.config.halting_weight * halting_loss, metrics

    def segments(
        self, rows: Tensor, window: SegmentWindow | None = None, *, supervised: bool = True
    ) -> Iterator[Segment]:
        """Yield the segments of `rows` (B, T + 1), inputs and targets shifted by one, as training computes them.

        A segment's window and memory are valid until the next one is asked for. `window` is an empty one to use.
        Who has a loss of their own says `supervised=False`: `loss` is then without the gradient that it costs.
        """
        batch, length = rows.shape[0], rows.shape[1] - 1
        n_steps = self.config.train_ponder_steps
        window = window or SegmentWindow()
        memory = self.memory.empty(batch, rows.device, self.embedding.weight.dtype)
        last = torch.zeros(batch, 1, device=rows.device)
        for start in range(0, length, self.config.segment_len):
            piece, targets = (part[:, start : start + self.config.segment_len] for part in (rows[:, :-1], rows[:, 1:]))
            here = places.everywhere((batch, piece.shape[1]), self.config.segment_len if start else 0, rows.device)
            x = self.embedding(piece).flatten(0, 1)
            ran = self.unroll(x, here, here.columns + start, window, memory)
            outputs = self.norm(ran.hiddens)
            weights = torch.full((n_steps * piece.numel(),), 1 / (n_steps * batch * length), device=rows.device)
            targets = targets.expand(n_steps, -1, -1).flatten()
            with torch.set_grad_enabled(supervised and torch.is_grad_enabled()):
                loss, losses = linear_cross_entropy(outputs.flatten(0, 2), self.head_weight, targets, weights)
            losses = losses.view(n_steps, *piece.shape)
            chosen = at_step(outputs, ran.steps)
            yield Segment(start, ran, chosen, loss, losses, window, memory)
            if start + piece.shape[1] < length:
                surprise = at_step(losses, ran.steps)
                memory = self.memory.write(memory, chosen, torch.cat([last, surprise[:, :-1]], dim=1))
                window.advance()
                last = surprise[:, -1:]

    def _ponder(self, piece: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Ponder over `piece` (B, T) and return hidden states (B, T, D), steps and memory hits (B, T).

        A token stops at the step where its cumulative halting probability reaches the threshold.
        """
        window, n_steps = state.window, self.config.train_ponder_steps
        hidden = self.embedding(piece)
        steps, going_on = torch.ones_like(piece), hidden.new_ones(piece.shape)
        here = places.everywhere((piece.shape[0], piece.shape[1]), window.past, piece.device)
        angles = self._angles(here.columns + state.position, hidden.dtype)
        hits = hidden.new_zeros(piece.shape)
        for step in range(n_steps):
            h, found = self._pass(hidden[here.rows, here.columns], step, here, angles, window, state.memory)
            hidden[here.rows, here.columns] = h
            if step == 0 and found is not None:
                hits = found.view_as(hits)
            if step == n_steps - 1:
                break
            going_on[here.rows, here.columns] *= torch.sigmoid(-self.halting(h))
            halted = halts(1 - going_on, self.config.halt_threshold)
            if halted.any():
                window.settle(step, places.where(halted & (steps == step + 1), window.past))
                if halted.all():
                    break
                here = places.where(~halted, window.past)
                angles = self._angles(here.columns + state.position, hidden.dtype)
            steps += ~halted
        return hidden, steps, hits

    def unroll(
        self, x: Tensor, here: Places, positions: Tensor, window: UnrolledWindow, memory: MemoryState
    ) -> Unrolled:
        """Run all ponder steps with the embedded tokens `x` (N, D) at the places `here`, differentiably.

        `positions` (N,) are the tokens' places in their texts.
        """
        angles = self._angles(positions, x.dtype)
        h, steps = x, torch.ones(here.shape, dtype=torch.int64, device=x.device)
        going_on, hits = x.new_ones(here.shape), x.new_zeros(here.shape)
        hiddens, halting = list[Tensor](), list[Tensor]()
        window.active = None
        for step in range(self.config.train_ponder_steps):
            h, found = self._pass(h, step, here, angles, window, memory)
            if step == 0 and found is not None:
                hits = found.detach().view_as(hits)
            hiddens.append(h.unflatten(0, here.shape))
            halting.append(self.halting(hiddens[-1]))
            going_on = going_on * torch.sigmoid(-halting[-1].detach().float())
            active = ~halts(1 - going_on, self.config.halt_threshold)
            window.active = None if active.all() else active
            if step < self.config.train_ponder_steps - 1:
                steps = steps + active
        return Unrolled(torch.stack(hiddens), torch.stack(halting), steps, hits)

    def _pass(
        self, x: Tensor, step: int, here: Places, angles: Rotation, window: Window, memory: MemoryState
    ) -> tuple[Tensor, Tensor | None]:
        """Take one ponder step with the tokens `x` (N, D) at the places `here`.

        Return their hidden states (N, D) and memory hits (N,), the latter None while the memory is empty.
        """
        h, hits = x + self.step_embedding[step], None
        for layer, module in enumerate(self.blocks):
            block = cast(Block, module)
            if layer == len(self.blocks) // 2:
                normed = self.memory.norm(h)
                latest = window.latest(step, here, self.memory.q(normed))
                if memory.keys.shape[1]:
                    query = sum(
                        (x * taps for x, taps in zip(latest, self.memory.q_conv, strict=True)), torch.zeros_like(x)
                    )
                    recalled, hits = self._recall(here, normed, query, memory)
                    h = h + recalled
            h = block.mix(h, window.attend(step, layer, here, *block.project(h, angles)))
        return h, hits

    def _recall(self, here: Places, normed: Tensor, query: Tensor, memory: MemoryState) -> tuple[Tensor, Tensor]:
        """Read memory for the tokens of each row and return (N, D), and the hits (N,)."""
        parts = [
            self.memory.recall(group.rectangle(normed), group.rectangle(query), memory.select(group.rows))
            for group in here.groups
        ]
        recalled, hits = zip(*parts, strict=True)
        return torch.cat([x.flatten(0, 1) for x in recalled]), torch.cat([x.flatten() for x in hits])

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        return rotation(positions, self.config.d_model // self.config.n_heads, self.config.rope_theta, dtype)

    def _surprise(self, piece: Tensor, outputs: Tensor, prediction: Tensor | None) -> Tensor:
        """Return the nats of the tokens `piece` (B, T), the first of them under the `prediction` made before it."""
        first = torch.zeros_like(outputs[:, :1, 0]) if prediction is None else _nll(prediction, piece[:, :1])
        if piece.shape[1] == 1:
            return first
        hidden, targets = outputs[:, :-1].flatten(0, 1), piece[:, 1:].flatten()
        rest = linear_cross_entropy(hidden, self.head_weight, targets)[1]
        return torch.cat([first, rest.view(piece.shape[0], -1)], dim=1)

    def _absorb(self, state: State, outputs: Tensor, surprise: Tensor) -> None:
        """Take a piece into the state; at the end of a segment, write memory."""
        start, length = state.position % self.config.segment_len, outputs.shape[1]
        state.outputs[:, start : start + length] = outputs
        state.surprise[:, start : start + length] = surprise
        state.window.advance(length)
        if start + length == self.config.segment_len:
            state.memory = self.memory.write(state.memory, state.outputs, state.surprise)

    def _pieces(self, tokens: Tensor, position: int) -> list[Tensor]:
        """Cut `tokens` (B, T), the first of them at `position`, where segments end."""
        size = self.config.segment_len
        first = min(size - position % size, tokens.shape[1])
        return [tokens[:, :first], *(tokens[:, first:].split(size, dim=1) if tokens.shape[1] > first else ())]

    def _initialise(self) -> None:
        """Draw matrices with the deviation D^-1/2, those that write to the residual stream scaled down by its depth.

        At widths this small the customary 0.02 is far too little: nano's loss was 6.2 instead of 5.4 after 80 steps.
        """
        deviation = self.config.d_model**-0.5
        residual = deviation * (2 * self.config.n_layers) ** -0.5
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.step_embedding, std=0.02)
        for block in self.blocks:
            for name, parameter in block.named_parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=residual if name.startswith(("out", "down")) else deviation)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.02)


def _nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the nats of `tokens` (B, 1) under `logits` (B, V)."""
    return -torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens)


def at_step(values: Tensor, steps: Tensor) -> Tensor:
    """Return of `values` (S, B, T, ...), one per ponder step, those after the last of each token's `steps` (B, T)."""
    last = steps.view(*steps.shape, *[1] * (values.dim() - 3))
    chosen = values[-1]
    for step in range(values.shape[0] - 1, 0, -1):  # a gather's backward pass takes several times as long
        chosen = torch.where(last == step, values[step - 1], chosen)
    return chosen
