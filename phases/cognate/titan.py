"""TinyTitan: a decoder-only transformer that thinks for as long as a token needs and remembers beyond its window.

A ponder step is one pass through the whole stack; all steps share its weights and differ in an embedding (Universal
Transformer, Dehghani et al. 2018). A halting head decides per token when to stop. Attention reaches over the current
segment and the one before; what is older is in the long-term memory, read once per ponder step in the middle of the
stack and written at the end of each segment. So the cost per token does not grow with the text, and a token-by-token
pass computes what a pass over the whole text computes.

Shapes: B rows, T tokens, D model width, V vocabulary, N ponder steps.
"""

from dataclasses import dataclass
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from phases.cognate.blocks import Block, rotation
from phases.cognate.halting import HaltingHead, bce_halting_loss, halting_targets, halts
from phases.cognate.memory import LongTermMemory, MemoryConfig
from phases.cognate.state import Level, State
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
class Thought:
    """The ponder steps of one piece of a segment."""

    hiddens: list[Tensor]  # per step (B, T, D); where a token had halted, its state is copied on
    halting: list[Tensor]  # per step (B, T), logits
    steps: Tensor  # (B, T), int64, steps that each token ran
    levels: tuple[Level, ...]
    hits: Tensor  # (B, T), share of attention given to memory in the first step


@dataclass(frozen=True)
class Evaluation:
    """Per-token measurements of a text."""

    nll: Tensor  # (B, T), nats
    steps: Tensor  # (B, T)
    hits: Tensor  # (B, T)
    state: State


class TinyTitan(nn.Module):
    """The model of phase 1. Training runs `train_ponder_steps`; inference halts each token by itself."""

    def __init__(self, config: TitanConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.step_embedding = nn.Parameter(torch.zeros(config.max_ponder_steps, config.d_model))
        self.blocks = nn.ModuleList(
            Block(config.d_model, config.n_heads, config.hidden) for _ in range(config.n_layers)
        )
        self.memory = LongTermMemory(config.d_model, config.memory)
        self.norm = nn.RMSNorm(config.d_model)
        self.halting = HaltingHead(config.d_model)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._initialise()

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix (V, D)."""
        weight: Tensor = (self.head or self.embedding).weight
        return weight

    def empty_state(self, batch: int) -> State:
        """Return the state of `batch` rows that have read nothing."""
        weight = self.embedding.weight
        none = weight.new_zeros(batch, 0, self.config.d_model)
        memory = self.memory.empty(batch, weight.device, weight.dtype)
        return State(0, (), memory, none, none[:, :, 0], none)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return next-token logits (B, T, V) and the state after `tokens` (B, T), halting token by token."""
        logits, _, state = self.predict(tokens, state)
        return logits, state

    def predict(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, Tensor, State]:
        """Return what `forward` does, and between them the ponder steps of each token (B, T)."""
        state = state or self.empty_state(tokens.shape[0])
        logits, steps = list[Tensor](), list[Tensor]()
        for piece in self._pieces(tokens, state):
            thought = self.think(piece, state, self.config.max_ponder_steps, self.config.halt_threshold)
            steps.append(thought.steps)
            output = self.norm(thought.hiddens[-1])
            logits.append(output @ self.head_weight.T)
            before = torch.cat([state.last @ self.head_weight.T, logits[-1][:, :-1]], dim=1)  # predicts `piece`
            surprise = _nll(before, piece[:, piece.shape[1] - before.shape[1] :])
            state = self._advance(state, thought, output, _padded(surprise, piece.shape[1]))
        return torch.cat(logits, dim=1), torch.cat(steps, dim=1), state

    def evaluate(self, rows: Tensor, state: State | None = None) -> Evaluation:
        """Measure `rows` (B, T + 1), inputs and targets shifted by one, with adaptive halting; no logits are kept."""
        inputs, targets = rows[:, :-1], rows[:, 1:]
        state = state or self.empty_state(rows.shape[0])
        nll, steps, hits = list[Tensor](), list[Tensor](), list[Tensor]()
        at = 0
        for piece in self._pieces(inputs, state):
            thought = self.think(piece, state, self.config.max_ponder_steps, self.config.halt_threshold)
            output = self.norm(thought.hiddens[-1])
            first = _nll(state.last @ self.head_weight.T, piece[:, : state.last.shape[1]])
            wanted = targets[:, at : at + piece.shape[1]]
            losses = linear_cross_entropy(output.flatten(0, 1), self.head_weight, wanted.flatten())[1]
            losses = losses.view_as(piece)
            surprise = torch.cat([first, losses[:, :-1]], dim=1)
            state = self._advance(state, thought, output, _padded(surprise, piece.shape[1]))
            for collected, part in ((nll, losses), (steps, thought.steps), (hits, thought.hits)):
                collected.append(part)
            at += piece.shape[1]
        return Evaluation(torch.cat(nll, 1), torch.cat(steps, 1), torch.cat(hits, 1), state)

    def loss(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss of `rows` (B, T + 1) and metrics.

        The mean over ponder steps of the cross-entropy (deep supervision) plus the halting head's regression on
        whether a further step would have gained anything.
        """
        inputs, targets = rows[:, :-1], rows[:, 1:]
        state = self.empty_state(rows.shape[0])
        n_steps = self.config.train_ponder_steps
        token_weights = torch.full((n_steps * inputs.numel(),), 1 / (n_steps * inputs.numel()), device=rows.device)
        total = torch.zeros((), device=rows.device)
        halting_logits, all_losses = list[Tensor](), list[Tensor]()
        at = 0
        for piece in self._pieces(inputs, state):
            wanted = targets[:, at : at + piece.shape[1]]
            thought = self.think(piece, state, n_steps, None)
            outputs = self.norm(torch.stack(thought.hiddens))  # (N, B, T, D)
            repeated = wanted.expand(n_steps, -1, -1).flatten()
            weights = token_weights[: repeated.numel()]
            loss, losses = linear_cross_entropy(outputs.flatten(0, 2), self.head_weight, repeated, weights)
            losses = losses.view(n_steps, *piece.shape)
            total = total + loss
            first = all_losses[-1][-1, :, -1:] if all_losses else losses.new_zeros(piece.shape[0], 0)
            surprise = torch.cat([first, losses[-1, :, :-1]], dim=1)
            state = self._advance(state, thought, outputs[-1], _padded(surprise, piece.shape[1]))
            halting_logits.append(torch.stack(thought.halting))
            all_losses.append(losses)
            at += piece.shape[1]
        losses = torch.cat(all_losses, dim=2)
        wanted_halting = halting_targets(losses, self.config.halt_tolerance)
        halting = bce_halting_loss(torch.cat(halting_logits, dim=2).float(), wanted_halting)
        metrics = {"cross_entropy": losses[-1].mean(), "halting_loss": halting.detach()}
        return total + self.config.halting_weight * halting, metrics

    def think(self, tokens: Tensor, state: State, max_steps: int, threshold: float | None) -> Thought:
        """Ponder over `tokens` (B, T), which must not cross the end of a segment.

        Without a `threshold` every token runs `max_steps`. With one, a token stops at the step where its cumulative
        halting probability reaches it, and is not computed any further.
        """
        x = self.embedding(tokens)
        positions = torch.arange(state.position, state.position + tokens.shape[1], device=tokens.device)
        levels = list(state.levels)
        hiddens, halting = list[Tensor](), list[Tensor]()
        active = torch.ones_like(tokens, dtype=torch.bool)
        going_on = torch.ones_like(x[..., 0])
        steps = torch.zeros_like(tokens)
        pieces = list[Level]()
        hits = torch.zeros_like(x[..., 0])
        for step in range(max_steps):
            window = levels[min(step, len(levels) - 1)] if levels else None
            queries = _Queries.of(active) if threshold is not None and step else None
            piece, x = self._pass(x, step, positions, window, state, pieces[-1] if pieces else None, queries)
            if step == 0 and threshold is not None and state.memory.keys.shape[1]:
                hits = self.memory.match(piece.middle, state.memory, _tail(window))
            pieces.append(piece)
            hiddens.append(x)
            halting.append(self.halting(x))
            steps = steps + active
            if threshold is not None:
                going_on = torch.where(active, going_on * torch.sigmoid(-halting[-1]), going_on)
                active = active & ~halts(1 - going_on, threshold)
                if not active.any():
                    break
        return Thought(hiddens, halting, steps, _extended(levels, pieces), hits)

    def _pass(
        self,
        x: Tensor,
        step: int,
        positions: Tensor,
        window: Level | None,
        state: State,
        before: Level | None,
        queries: "_Queries | None",
    ) -> tuple[Level, Tensor]:
        """Run the stack once and return the piece's part of the level and its hidden states (B, T, D).

        With `queries`, only they are computed; the rest keep their hidden state, and their keys, values and middle
        states are those of the level `before`.
        """
        h = x + self.step_embedding[step]
        place = positions.unsqueeze(0)
        past = window.keys[0].shape[2] if window is not None else 0
        mask = _causal(positions.numel(), past, x.device)
        if queries is not None and before is not None:
            h, place = queries.take(h), positions[queries.index]
            mask = queries.mask(past, positions.numel())
        angles = rotation(place, self.config.d_model // self.config.n_heads, self.config.rope_theta, x.dtype)
        keys, values, middle = list[Tensor](), list[Tensor](), x[:, :0]
        for number, module in enumerate(self.blocks):
            block = cast(Block, module)
            if number == len(self.blocks) // 2:
                middle = h if queries is None or before is None else queries.put(before.middle, h)
                if state.memory.keys.shape[1]:
                    recalled = self.memory.read(middle, state.memory, _tail(window))
                    h = h + (recalled if queries is None else queries.take(recalled))
            q, k, v = block.project(h, angles)
            if queries is not None and before is not None:
                k, v = queries.put_heads(before.keys[number], k), queries.put_heads(before.values[number], v)
            keys.append(k)
            values.append(v)
            all_k, all_v = (
                (k, v)
                if window is None
                else (torch.cat([window.keys[number], k], 2), torch.cat([window.values[number], v], 2))
            )
            if queries is not None:
                all_k, all_v = all_k[queries.rows], all_v[queries.rows]
            h = block(h, q, all_k, all_v, mask)
        return Level(tuple(keys), tuple(values), middle), h if queries is None else queries.put(x, h)

    def _pieces(self, tokens: Tensor, state: State) -> list[Tensor]:
        """Cut `tokens` (B, T) where segments end."""
        size = self.config.segment_len
        first = min(size - state.position % size, tokens.shape[1])
        return [tokens[:, :first], *(tokens[:, first:].split(size, dim=1) if tokens.shape[1] > first else ())]

    def _advance(self, state: State, thought: Thought, output: Tensor, surprise: Tensor) -> State:
        """Return the state after a piece; at the end of a segment, write memory and let the window move on."""
        hidden = torch.cat([state.hidden, thought.hiddens[-1]], dim=1)
        surprise = torch.cat([state.surprise, surprise.to(hidden.dtype)], dim=1)
        position = state.position + output.shape[1]
        if position % self.config.segment_len:
            return State(position, thought.levels, state.memory, hidden, surprise, output[:, -1:])
        memory = self.memory.write(state.memory, hidden, surprise)
        levels = tuple(level.last(self.config.segment_len) for level in thought.levels)
        return State(position, levels, memory, hidden[:, :0], surprise[:, :0], output[:, -1:])

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


@dataclass(frozen=True)
class _Queries:
    """The tokens still active: rows R with any, and A places in each; a row with fewer repeats halted ones unused."""

    rows: Tensor | slice  # (R,); a slice where the active rows come first, which costs no copy of the window
    index: Tensor  # (R, A), places in the piece
    valid: Tensor  # (R, A), bool

    @classmethod
    def of(cls, active: Tensor) -> "_Queries":
        """Gather from `active` (B, T)."""
        any_active = active.any(1)
        count = int(any_active.sum())
        rows: Tensor | slice = slice(0, count) if bool(any_active[:count].all()) else any_active.nonzero().squeeze(1)
        kept = active[rows]
        order = torch.argsort((~kept).to(torch.uint8), dim=1, stable=True)[:, : int(kept.sum(1).max())]
        return cls(rows, order, torch.gather(kept, 1, order))

    def take(self, x: Tensor) -> Tensor:
        """Return (R, A, D) of (B, T, D)."""
        return torch.gather(x[self.rows], 1, self.index.unsqueeze(-1).expand(-1, -1, x.shape[2]))

    def put(self, x: Tensor, part: Tensor) -> Tensor:
        """Return (B, T, D) with `part` (R, A, D) in its places and `x` elsewhere."""
        part = torch.where(self.valid.unsqueeze(-1), part.to(x.dtype), self.take(x))
        changed = x.clone()
        index = self.index.unsqueeze(-1).expand_as(part)
        changed[self.rows] = x[self.rows].scatter(1, index, part)
        return changed

    def put_heads(self, x: Tensor, part: Tensor) -> Tensor:
        """Return (B, H, T, K) with `part` (R, H, A, K) in its places and `x` elsewhere."""
        merged = self.put(x.transpose(1, 2).flatten(2), part.transpose(1, 2).flatten(2))
        heads: Tensor = merged.unflatten(2, (x.shape[1], -1)).transpose(1, 2)
        return heads

    def mask(self, past: int, length: int) -> Tensor | None:
        """Return which of `past` + `length` keys each query may see, (R, 1, A, W); None where it is one token's."""
        if length == 1:
            return None
        keys = torch.arange(past + length, device=self.index.device)
        return (keys <= past + self.index.unsqueeze(-1)).unsqueeze(1)


def _causal(length: int, past: int, device: torch.device) -> Tensor | None:
    """Return the mask (T, past + T) of `length` tokens behind `past` ones; one token sees everything."""
    if length == 1:
        return None
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)


def _extended(levels: list[Level], pieces: list[Level]) -> tuple[Level, ...]:
    """Append a piece's levels to the window's; where one has fewer, its highest stands for those above."""
    if not levels:
        return tuple(pieces)
    extended = []
    for number in range(max(len(levels), len(pieces))):
        old, new = levels[min(number, len(levels) - 1)], pieces[min(number, len(pieces) - 1)]
        keys = tuple(torch.cat(pair, dim=2) for pair in zip(old.keys, new.keys, strict=True))
        values = tuple(torch.cat(pair, dim=2) for pair in zip(old.values, new.values, strict=True))
        extended.append(Level(keys, values, torch.cat([old.middle, new.middle], dim=1)))
    return tuple(extended)


def _tail(window: Level | None) -> Tensor | None:
    """Return the last three middle states of the segment so far, which the memory's convolution reaches back to."""
    if window is None or window.middle.shape[1] == 0:
        return None
    return window.middle[:, -3:]


def _nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the nats of `tokens` (B, T) under `logits` (B, T, V)."""
    picked: Tensor = torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return -picked


def _padded(surprise: Tensor, length: int) -> Tensor:
    """Put a zero before the surprises where the first token of all has none."""
    return torch.cat([surprise.new_zeros(surprise.shape[0], length - surprise.shape[1]), surprise], dim=1)
