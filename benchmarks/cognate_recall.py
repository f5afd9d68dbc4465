"""Key-value recall beyond the window: does the write rule keep what is worth keeping?

A stream of 512 tokens is 256 chunks: 24 key-value pairs, each stated three times at random places, among filler that
counts on predictably through 64 different chunks. Pairs are surprising at every statement, filler is novel at its
first; only their conjunction picks out the 24 facts. The model sees four tokens and `LongTermMemory`; after the stream
it is asked for every value. It trains with room for all chunks, so that no write rule is favoured, and the rules are
then compared on the same weights and streams with few slots.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phases.cognate.memory import LongTermMemory, MemoryConfig, MemoryState, Policy
from phases.cognate.norm import RMSNorm
from phases.seeds import torch_rng

KEYS, VALUES, FILLER = 64, 32, 128
VOCABULARY = KEYS + VALUES + FILLER
CHUNKS, PAIRS, STATEMENTS = 256, 24, 3
WINDOW, SEGMENT, WIDTH, BATCH, LEARNING_RATE = 4, 64, 48, 16, 4e-3
POLICIES: tuple[Policy, ...] = ("surprise_novelty", "surprise", "novelty", "fifo", "random")
FULL_BANK = MemoryConfig(capacity=CHUNKS, chunk=2, hidden=2 * WIDTH, duplicate=0.8, policy="fifo")


def streams(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (B, 512), questions (B, 4 * PAIRS), each three of filler and a key, and the values asked for."""
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = KEYS + torch.randint(VALUES, (count, PAIRS), generator=generator)
    place = torch.rand(count, CHUNKS, generator=generator).argsort(1)[:, : PAIRS * STATEMENTS]
    is_pair = torch.zeros(count, CHUNKS, dtype=torch.long).scatter_(1, place, 1)
    counter = (1 - is_pair).cumsum(1) + torch.randint(FILLER // 2, (count, 1), generator=generator)
    tokens = torch.stack([2 * counter, 2 * counter + 1], dim=2) % FILLER + KEYS + VALUES
    pairs = torch.stack([keys, values], dim=2).repeat(1, STATEMENTS, 1)
    tokens.scatter_(1, place.unsqueeze(2).expand(-1, -1, 2), pairs)
    following = 2 * counter[:, -1:] + 2 + 4 * torch.arange(PAIRS)  # (B, PAIRS)
    filler = (following.unsqueeze(2) + torch.arange(3)) % FILLER + KEYS + VALUES
    questions = torch.cat([filler, keys.unsqueeze(2)], dim=2)
    return tokens.flatten(1), questions.flatten(1), values


class Recaller(nn.Module):
    """A language model whose only sight beyond four tokens is long-term memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.norm_window, self.norm_mlp, self.norm_out = (RMSNorm(WIDTH) for _ in range(3))
        self.window = nn.Linear(WINDOW * WIDTH, WIDTH)
        self.memory = LongTermMemory(WIDTH, FULL_BANK)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, WIDTH))

    def listen(self, tokens: Tensor) -> tuple[MemoryState, Tensor]:
        """Go through (B, T) segment by segment; return the memory and the NLL of all tokens but the first."""
        hidden = self._trunk(tokens)
        state = self.memory.empty(len(tokens), tokens.device, hidden.dtype)
        nlls, last = [], torch.zeros_like(hidden[:, :1, 0])
        for start in range(0, tokens.shape[1], SEGMENT):
            piece = hidden[:, start : start + SEGMENT]
            following = tokens[:, start + 1 : start + 1 + SEGMENT]
            logits = self._predict(piece, state)[:, : following.shape[1]]
            nll = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none").view_as(following)
            surprise = torch.cat([last, nll], dim=1)
            state = self.memory.write(state, piece, surprise[:, :SEGMENT])
            nlls.append(nll)
            last = nll[:, -1:]
        return state, torch.cat(nlls, dim=1)

    def answer(self, questions: Tensor, state: MemoryState) -> Tensor:
        """Return logits (B, PAIRS, V) of the values."""
        return self._predict(self._trunk(questions), state)[:, WINDOW - 1 :: WINDOW]

    def _trunk(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        padded = F.pad(self.norm_window(x), (0, 0, WINDOW - 1, 0))
        seen = torch.cat([padded[:, i : i + x.shape[1]] for i in range(WINDOW)], dim=2)
        trunk: Tensor = x + self.window(seen)
        return trunk

    def _predict(self, hidden: Tensor, state: MemoryState) -> Tensor:
        h = hidden + self.memory.read(hidden, state)
        h = self.norm_out(h + self.mlp(self.norm_mlp(h)))
        logits: Tensor = h @ self.embedding.weight.T
        return logits


def train_recaller(seed: int, iterations: int) -> Recaller:
    """Train one model with a full bank on next tokens and answers."""
    torch.manual_seed(seed)
    generator = torch_rng(seed, "recall", "train")
    model = Recaller()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    for iteration in range(iterations):
        falling = min(1.0, 2 * (1 - iteration / iterations))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min((iteration + 1) / 30, max(0.05, falling))
        tokens, questions, values = streams(BATCH, generator)
        state, nll = model.listen(tokens)
        loss = nll.mean() + F.cross_entropy(model.answer(questions, state).flatten(0, 1), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@torch.no_grad()
def measure_recall(
    model: Recaller, policy: Policy, slots: int, seed: int, count: int, *, shuffled: bool = False
) -> float:
    """Return the share of values recalled over `count` fresh streams, with another stream's memory if `shuffled`."""
    torch.manual_seed(seed)  # the random policy draws from the global generator
    config = FULL_BANK.model_copy(update={"policy": policy, "capacity": slots})
    tokens, questions, values = streams(count, torch_rng(seed, "recall", "test"))
    model.memory.config = config
    state, _ = model.listen(tokens)
    if shuffled:
        state = state.select(torch.roll(torch.arange(count), 1))
    recalled = model.answer(questions, state).argmax(-1) == values
    model.memory.config = FULL_BANK
    return float(recalled.float().mean())
