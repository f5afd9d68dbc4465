"""What thoughts do to held-out text, and what they are like: the numbers behind the claims of phase 3.

Thoughts are greedy, one at each place, so a second measurement finds the same. A token is predicted with the thought
that begins right before it, where there is one, and without a thought elsewhere.

Shapes: R rows, T tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from phases.quietstar.coherence import components, evidence, total
from phases.quietstar.config import SamplingConfig
from phases.quietstar.injection import entropies
from phases.quietstar.sources import Source, sampled
from phases.quietstar.thinker import Observed, Thinker
from phases.seeds import numpy_rng

GREEDY = SamplingConfig(temperature=0)
WORTH = 0.001  # bits per byte that the lower end of a gain's interval has to be above: less pays for no thought
_ROWS = 8
_RESAMPLES = 1000


@dataclass(frozen=True)
class TextMeasured:
    """Nats of every token, and what was thought."""

    without: Tensor  # (R, T)
    within: Tensor  # (R, T), with thoughts
    n_bytes: Tensor  # (R,)
    weight: float  # of thoughts in the mix, mean over places
    thought_tokens: float  # per token of text, markers included

    def bits_per_byte(self, nats: Tensor) -> float:
        """Return the bits per byte of `nats` (R, T)."""
        return float(nats.double().sum() / self.n_bytes.double().sum() / math.log(2))

    @property
    def gain(self) -> float:
        """Return the bits per byte that thoughts save; negative where they cost."""
        return self.bits_per_byte(self.without) - self.bits_per_byte(self.within)

    @property
    def gain_per_thought_token(self) -> float:
        """Return the nats that each thought token saves."""
        return float((self.without - self.within).double().sum()) / (self.thought_tokens * self.without.numel())

    def interval(self, resamples: int, seed: int) -> tuple[float, float]:
        """Return the 95% bootstrap interval of the gain over rows."""
        saved = (self.without - self.within).double().sum(1).numpy() / math.log(2)
        sizes = self.n_bytes.double().numpy()
        drawn = numpy_rng(seed, "quietstar", "bootstrap").integers(len(sizes), size=(resamples, len(sizes)))
        low, high = np.quantile(saved[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
        return float(low), float(high)


@torch.no_grad()
def measure_text(
    thinker: Thinker, rows: Tensor, token_bytes: npt.NDArray[np.int64], source: Source | None = None
) -> TextMeasured:
    """Measure `rows` (R, T + 1); `source` replaces greedy thoughts, e.g. with controls."""
    config = thinker.config.model_copy(update={"parallel": 1, "lookahead": 1})
    without, within, weights, thought = list[Tensor](), list[Tensor](), list[Tensor](), 0
    for part in rows.split(_ROWS):
        seen = thinker.observe(part, source or sampled(GREEDY), config)
        nll = thinker.nll(seen, torch.ones_like(seen.weight))[1][:, :, 0, 0]
        without.append(seen.base_nll)
        within.append(seen.base_nll.scatter(1, seen.positions, nll))
        weights.append(seen.weight.flatten())
        thought += int((seen.lengths + 2).sum())
    sizes = torch.from_numpy(token_bytes)[rows[:, 1:].cpu()].sum(1)
    return TextMeasured(
        without=torch.cat(without).cpu(),
        within=torch.cat(within).cpu(),
        n_bytes=sizes,
        weight=float(torch.cat(weights).mean()),
        thought_tokens=thought / (rows.shape[0] * (rows.shape[1] - 1)),
    )


@torch.no_grad()
def measure_coherence(thinker: Thinker, rows: Tensor) -> dict[str, float]:
    """Return the mean of each component and of the total over the greedy thoughts of `rows` (R, T + 1)."""
    config = thinker.config.model_copy(update={"parallel": 1, "lookahead": 1})
    seen = thinker.observe(rows, sampled(GREEDY), config)
    scores = components(evidence(thinker, rows, seen.tokens.flatten(1, 2), config))
    means = {name: float(score.mean()) for name, score in scores.items()}
    return means | {"total": float(total(scores).mean())}


@torch.no_grad()
def entropy_threshold(thinker: Thinker, rows: Tensor) -> float:
    """Return the entropy in nats that the configured share of places in `rows` (R, T + 1) exceeds."""
    found = [
        entropies(segment.outputs, thinker.head_weight).flatten()
        for part in rows.split(_ROWS)
        for segment in thinker.model.segments(part)
    ]
    return float(torch.quantile(torch.cat(found).float(), 1 - thinker.config.share))


def how_to_use(thinker: Thinker, rows: Tensor, token_bytes: npt.NDArray[np.int64], seed: int) -> tuple[float, bool]:
    """Return the entropy from which to think, and whether to think at all, by `rows` (R, T + 1) of validation text.

    Thoughts help where the lower end of the gain's interval is worth something.
    """
    low, _ = measure_text(thinker, rows, token_bytes).interval(_RESAMPLES, seed)
    return entropy_threshold(thinker, rows), low > WORTH


@torch.no_grad()
def thought_entropy(thinker: Thinker, rows: Tensor) -> float:
    """Return the nats per token of thoughts sampled about `rows` (R, T + 1) under the policy that drew them."""
    seen = thinker.observe(rows)
    nats = -thinker.log_probs(seen).sum()
    return float(nats / (seen.lengths.sum() * seen.tokens.shape[2]))


@torch.no_grad()
def examples(thinker: Thinker, rows: Tensor, tokenizer: Tokenizer, count: int) -> list[dict[str, Any]]:
    """Return the greedy thoughts that changed the next token's probability most, beside the text they changed."""
    config = thinker.config.model_copy(update={"parallel": 1, "lookahead": 1})
    seen = thinker.observe(rows, sampled(GREEDY), config)
    nll = thinker.nll(seen, torch.ones_like(seen.weight))[1][:, :, 0, 0]
    change = seen.base_nll.gather(1, seen.positions) - nll  # (R, P), nats saved
    order = change.abs().flatten().argsort(descending=True)[:count].tolist()
    return [_example(seen, rows, tokenizer, change, *divmod(index, change.shape[1])) for index in order]


def _example(
    seen: Observed, rows: Tensor, tokenizer: Tokenizer, change: Tensor, row: int, place: int
) -> dict[str, Any]:
    position = int(seen.positions[row, place])
    before = float(seen.base_nll[row, position])
    saved = float(change[row, place])
    thought = seen.tokens[row, place, 0, : int(seen.lengths[row, place])]
    return {
        "text": tokenizer.decode(rows[row, max(0, position - 24) : position + 1].tolist()),
        "thought": tokenizer.decode(thought.tolist()),
        "next": tokenizer.decode([int(rows[row, position + 1])]),
        "probability_without": math.exp(-before),
        "probability_with": math.exp(saved - before),
        "weight": float(seen.weight[row, place, 0, 0]),
    }
