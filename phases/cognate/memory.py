"""Long-term memory: a bounded set of key-value slots for each stream, written where surprise meets novelty.

Titans-inspired but non-parametric: what is remembered are projected hidden states of token chunks, not weights. A
segment is written at its end in one vectorised step that equals going through its chunks one by one. Gradients flow
from a read to whatever wrote the slots; only the selection is discrete. Tensors hold the slots in use and no empty
ones, so an empty memory costs nothing whatever its capacity.

Shapes: B streams, T tokens, C = T / chunk chunks, S slots in use (at most the capacity), D = d_model.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from phases.cognate.norm import RMSNorm
from phases.settings import Settings

CONV_WIDTH = 4
Policy = Literal["surprise_novelty", "surprise", "novelty", "fifo", "random"]


class MemoryConfig(Settings):
    """Size and write rule of a memory."""

    capacity: int = Field(4096, ge=1, description="slots per stream (documented default; 8,192 in the memory variant)")
    top_k: int = Field(4, ge=1, description="slots that a read attends to (documented default)")
    chunk: int = Field(4, ge=1, description="tokens per slot; slots of single tokens fail on key-value recall")
    hidden: int = Field(1218, ge=1, description="width of the MLP behind a read (1,218 in the 25M layout)")
    write_threshold: float = Field(
        0.5, ge=0, le=1, description="score to be written; one half is the stream's own mean"
    )
    duplicate: float = Field(0.95, ge=0, le=1, description="cosine of keys from which a slot is updated, not added")
    decay: float = Field(1e-3, ge=0, description="largest rate per chunk at which a slot fades; learned below that")
    policy: Policy = Field("surprise_novelty", description="write and eviction rule; the others are for ablations")


class MemoryState(NamedTuple):
    """What the streams remember. Rows are independent; `valid` marks the slots that a row uses."""

    keys: Tensor  # (B, S, D), unit length
    values: Tensor  # (B, S, D)
    score: Tensor  # (B, S), importance when written, in [0, 1]
    age: Tensor  # (B, S), chunks since written or updated
    rate: Tensor  # (B, S), decay per chunk
    valid: Tensor  # (B, S), bool
    seen: Tensor  # (B,), chunks so far
    surprise: Tensor  # (B,), sum over the chunks seen, nats
    novelty: Tensor  # (B,), sum over the chunks seen

    def detach(self) -> "MemoryState":
        """Return the same memory, cut off from what wrote it."""
        return MemoryState(*(tensor.detach() for tensor in self))

    def reset(self, rows: Tensor) -> "MemoryState":
        """Forget all in the streams where `rows` (B,) is true, e.g. at the start of another document."""
        return MemoryState(*(t.masked_fill(rows.view(-1, *[1] * (t.dim() - 1)), 0) for t in self))

    def select(self, rows: Tensor | slice) -> "MemoryState":
        """Return the streams with the indices `rows`; of a slice, as views."""
        return MemoryState(*(tensor[rows] for tensor in self))


class _Chunks(NamedTuple):
    """The candidates of one segment."""

    keys: Tensor  # (B, C, D), unit length
    values: Tensor  # (B, C, D)
    rate: Tensor  # (B, C)
    surprise: Tensor  # (B, C), nats per token


class WritePlan(NamedTuple):
    """What happens to the chunks of a segment."""

    score: Tensor  # (B, C), in [0, 1]
    novelty: Tensor  # (B, C), 1 - the cosine to the nearest key
    accept: Tensor  # (B, C), bool: becomes a slot of its own
    target: Tensor  # (B, C), int64: the slot (< S) or chunk (S + its index) that it updates, -1 for none


class LongTermMemory(nn.Module):
    """Read and write projections of one memory; what is remembered is a `MemoryState` that the caller carries."""

    def __init__(self, d_model: int, config: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = RMSNorm(d_model)
        self.q, self.k, self.v, self.o = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.q_conv, self.k_conv, self.v_conv = (nn.Parameter(_identity_taps(d_model)) for _ in range(3))
        self.read_gate, self.address_gate, self.decay_gate = (nn.Linear(d_model, 1) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(d_model, config.hidden), nn.SiLU(), nn.Linear(config.hidden, d_model))
        # Queries and keys start in one space: with separate ones, recall had not left chance after 300 steps.
        with torch.no_grad():
            for projection in (self.q, self.v, self.o):
                nn.init.normal_(projection.weight, std=d_model**-0.5)
            self.k.weight.copy_(self.q.weight)

    def empty(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> MemoryState:
        """Return the memory of `batch` streams that have seen nothing."""
        d_model = self.q.in_features
        vectors = torch.zeros(batch, 0, d_model, device=device, dtype=dtype)
        scalars, totals = vectors[:, :, 0], torch.zeros(batch, device=device, dtype=dtype)
        return MemoryState(vectors, vectors, scalars, scalars, scalars, scalars.bool(), totals, totals, totals)

    def read(self, x: Tensor, state: MemoryState, previous: Tensor | None = None) -> Tensor:
        """Return what memory adds to hidden states `x` (B, T, D); exact zeros where a stream remembers nothing.

        `previous` (B, <= 3, D) are the hidden states just before `x`, which the convolution needs when tokens come one
        by one; nothing precedes `x` where it is None.
        """
        return self.recall(self.norm(x), self._query(x, previous), state)[0]

    def match(self, x: Tensor, state: MemoryState, previous: Tensor | None = None) -> Tensor:
        """Return the share of attention that each token of `x` gives to memory, (B, T) in [0, 1]: the hit rate."""
        return self._attend(self._query(x, previous), state)[0].sum(-1)

    def recall(self, h: Tensor, q: Tensor, state: MemoryState) -> tuple[Tensor, Tensor]:
        """Return what memory adds for normalised hidden states `h` and queries `q` (B, T, D), and the hit rate (B, T).

        A query is `self.q(h)` of a token and of the three before it, mixed by the taps of `self.q_conv`.
        """
        weights, slots = self._attend(q, state)
        rows = torch.arange(h.shape[0], device=h.device).view(-1, 1, 1)
        recalled = self.o((weights.unsqueeze(-1) * state.values[rows, slots]).sum(2))
        matched = weights.sum(-1)
        read: Tensor = torch.sigmoid(self.read_gate(h)) * (recalled + matched.unsqueeze(-1) * self.mlp(recalled))
        return read, matched

    def write(self, state: MemoryState, hidden: Tensor, surprise: Tensor) -> MemoryState:
        """Return the memory after a segment: `hidden` (B, T, D) and `surprise` (B, T), the nats of each token.

        Raises `ValueError` where T is no multiple of the chunk.
        """
        chunks = self._chunks(hidden, surprise)
        n_chunks = chunks.surprise.shape[1]
        plan = plan_writes(state, chunks.keys, chunks.surprise, self.config)
        merged = _update_in_place(_append(state, chunks, plan), chunks, plan)
        merged = merged._replace(
            seen=state.seen + n_chunks,
            surprise=state.surprise + chunks.surprise.sum(1),
            novelty=state.novelty + plan.novelty.sum(1),
        )
        return _evict(merged, self.config)

    def _query(self, x: Tensor, previous: Tensor | None) -> Tensor:
        context = x if previous is None else torch.cat([previous, x], dim=1)
        return _causal_conv(self.q(self.norm(context)), self.q_conv)[:, -x.shape[1] :]

    def _attend(self, q: Tensor, state: MemoryState) -> tuple[Tensor, Tensor]:
        """Return weights and indices (B, T, k) of the slots read. A null slot of logit 0 takes what matches nothing.

        Keys have unit length and queries keep theirs, so a query's length is its learned, token-wise temperature.
        """
        faded = (state.rate * state.age).unsqueeze(1)
        logits = q @ state.keys.transpose(1, 2) - faded  # (B, T, S)
        logits = logits.masked_fill(~state.valid.unsqueeze(1), -torch.inf)
        top, slots = logits.topk(min(self.config.top_k, logits.shape[2]), dim=2)
        null = torch.zeros_like(top[..., :1]) if top.shape[2] else q.new_zeros(*q.shape[:2], 1)
        return torch.softmax(torch.cat([null, top], dim=2), dim=2)[..., 1:], slots

    def _chunks(self, hidden: Tensor, surprise: Tensor) -> _Chunks:
        """Pool a segment into chunks. The address gate picks which tokens of a chunk make its key."""
        batch, length, d_model = hidden.shape
        if length % self.config.chunk:
            raise ValueError(f"a segment of {length} tokens is no multiple of memory.chunk = {self.config.chunk}")
        h = self.norm(hidden)
        shape = (batch, length // self.config.chunk, self.config.chunk)
        k = _causal_conv(self.k(h), self.k_conv).view(*shape, d_model)
        v = _causal_conv(self.v(h), self.v_conv).view(*shape, d_model)
        address = torch.sigmoid(self.address_gate(h)).view(*shape, 1)
        rate = self.config.decay * torch.sigmoid(self.decay_gate(h)).view(*shape).mean(2)
        return _Chunks(
            keys=F.normalize((address * k).sum(2), dim=-1),
            values=v.mean(2),
            rate=rate,
            surprise=surprise.detach().to(hidden.dtype).view(*shape).mean(2),
        )


def _identity_taps(d_model: int) -> Tensor:
    """Return convolution weights (4, D) that pass the current token on; the small rest lets every tap learn."""
    taps = torch.randn(CONV_WIDTH, d_model) * 0.02
    taps[-1] = 1
    return taps


def _causal_conv(x: Tensor, taps: Tensor) -> Tensor:
    """Convolve (B, T, D) along T, channel by channel, with `taps` (4, D); zeros precede the first token."""
    padded = F.pad(x, (0, 0, CONV_WIDTH - 1, 0))
    return sum((padded[:, i : i + x.shape[1]] * taps[i] for i in range(CONV_WIDTH)), start=torch.zeros_like(x))


def relative(amount: Tensor, mean: Tensor) -> Tensor:
    """Return amount / (amount + mean): in [0, 1], one half at the stream's mean. It needs no scale of its own."""
    return amount / (amount + mean).clamp_min(1e-6)


def plan_writes(state: MemoryState, keys: Tensor, surprise: Tensor, config: MemoryConfig) -> WritePlan:
    """Decide what becomes of the chunks of a segment, as if they came one by one.

    `keys` (B, C, D) are of unit length, `surprise` (B, C) is in nats per token. A chunk's novelty is 1 - the largest
    cosine to any slot or to any chunk accepted before it. It is accepted where 0.5 * surprise + 0.5 * novelty, both
    relative to the stream's mean so far, passes the threshold, and updates its nearest neighbour where the two keys are
    near-identical. Whether a chunk is accepted depends on those before it: iterating to the fixed point, which is
    unique and usually reached in two or three rounds, gives the sequential result exactly.
    """
    keys, slot_keys = keys.detach(), state.keys.detach()
    batch, n_chunks, _ = keys.shape
    # An unwritten memory expects a novelty of one half, with the weight of a single chunk.
    mean_novelty = ((state.novelty + 0.5) / (state.seen + 1)).unsqueeze(1)
    mean_surprise = ((state.surprise + surprise.sum(1)) / (state.seen + n_chunks)).unsqueeze(1)
    surprising = relative(surprise, mean_surprise)
    to_slots = (keys @ slot_keys.transpose(1, 2)).masked_fill(~state.valid.unsqueeze(1), -1)
    earlier = torch.ones(n_chunks, n_chunks, dtype=torch.bool, device=keys.device).tril(-1)
    to_chunks = (keys @ keys.transpose(1, 2)).masked_fill(~earlier, -1)
    looks_for_duplicates = config.policy in ("surprise_novelty", "novelty")
    accept = torch.ones(batch, n_chunks, dtype=torch.bool, device=keys.device)
    for _ in range(n_chunks + 1):
        known = torch.cat([to_slots, to_chunks.masked_fill(~accept.unsqueeze(1), -1)], dim=2)
        cosine, nearest = known.max(dim=2)
        novelty = 1 - cosine.clamp(0, 1)
        score = _score(surprising, relative(novelty, mean_novelty), config)
        duplicate = (cosine >= config.duplicate) & looks_for_duplicates
        accepted = (score >= config.write_threshold) & ~duplicate
        if torch.equal(accepted, accept):
            break
        accept = accepted
    return WritePlan(score, novelty, accept, nearest.masked_fill(~duplicate, -1))


def _score(surprise: Tensor, novelty: Tensor, config: MemoryConfig) -> Tensor:
    """Return the importance of chunks under the policy; FIFO and random order write everything."""
    match config.policy:
        case "surprise_novelty":
            return 0.5 * surprise + 0.5 * novelty
        case "surprise":
            return surprise
        case "novelty":
            return novelty
        case "fifo" | "random":
            return torch.ones_like(surprise)


def _append(state: MemoryState, chunks: _Chunks, plan: WritePlan) -> MemoryState:
    """Return the memory with all chunks behind the slots, S + C wide, valid where they were accepted."""
    n_chunks = chunks.surprise.shape[1]
    age = torch.arange(n_chunks - 1, -1, -1, device=chunks.keys.device, dtype=chunks.keys.dtype)
    return state._replace(
        keys=torch.cat([state.keys, chunks.keys], dim=1),
        values=torch.cat([state.values, chunks.values], dim=1),
        score=torch.cat([state.score, plan.score], dim=1),
        age=torch.cat([state.age + n_chunks, age.expand_as(plan.score)], dim=1),
        rate=torch.cat([state.rate, chunks.rate], dim=1),
        valid=torch.cat([state.valid, plan.accept], dim=1),
    )


def _update_in_place(state: MemoryState, chunks: _Chunks, plan: WritePlan) -> MemoryState:
    """Give slots that were met again the value of their last duplicate, its age and a score that all meetings raise.

    Scores combine as chances do, 1 - prod(1 - score): what came back twice outranks what came once, where the largest
    score alone let one-off chunks evict facts (recall of 24 facts from 24 slots: see docs/evidence.md). The key stays,
    so that what counts as known does not drift within a segment.
    """
    width, n_chunks = state.score.shape[1], chunks.surprise.shape[1]
    target = plan.target.masked_fill(plan.target < 0, width)  # one column more takes what updates nothing
    order = torch.arange(n_chunks, device=target.device).expand_as(target)
    last = order.new_full((target.shape[0], width + 1), -1).scatter_reduce(1, target, order, "amax")[:, :-1]
    doubt = state.score.new_ones(target.shape[0], width + 1).scatter_reduce(1, target, 1 - plan.score, "prod")[:, :-1]
    updated, source = last >= 0, last.clamp_min(0)
    from_chunk = torch.gather(chunks.values, 1, source.unsqueeze(-1).expand(-1, -1, chunks.values.shape[2]))
    return state._replace(
        values=torch.where(updated.unsqueeze(-1), from_chunk, state.values),
        score=1 - (1 - state.score) * doubt,
        age=torch.where(updated, (n_chunks - 1 - source).to(state.age.dtype), state.age),
    )


def _evict(state: MemoryState, config: MemoryConfig) -> MemoryState:
    """Keep each stream's most important slots, at most `capacity`, and no columns that all streams leave empty."""
    match config.policy:
        case "fifo":
            worth = -state.age
        case "random":
            worth = torch.rand_like(state.score)
        case _:
            worth = state.score * torch.exp(-state.rate * state.age)
    used = int(state.valid.sum(1).max()) if state.valid.numel() else 0
    worth = worth.detach().masked_fill(~state.valid, -torch.inf)
    kept = worth.topk(min(config.capacity, used), dim=1).indices
    wide = kept.unsqueeze(-1).expand(-1, -1, state.keys.shape[2])
    return state._replace(
        keys=torch.gather(state.keys, 1, wide),
        values=torch.gather(state.values, 1, wide),
        **{name: torch.gather(getattr(state, name), 1, kept) for name in ("score", "age", "rate", "valid")},
    )
