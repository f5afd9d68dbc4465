"""Does a thought hang together? Four measurements and their documented weighted sum: a gate and a metric.

- semantic (30%): cosine of each thought token's embedding with the mean embedding of what the context made likely there
- logical (25%): how much likelier the steps are in their order than in another order; 0 where no step follows
- relevance (25%): how much likelier the thought is behind its own text than behind other texts
- fluency (20%): how likely its tokens are where they stand, from what uniform ones are up to certainty

A token that is less likely than a uniform one counts as that likely: how impossible the impossible is, is noise.

It is for after training: it is in no reward and filters nothing before, when useful thoughts are not the fluent ones.

Shapes: N thoughts of n tokens; log-probabilities are in nats per token, all scores in [0, 1].
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phases.errors import ConfigError
from phases.quietstar.config import ThoughtConfig
from phases.quietstar.sources import Source, Thinking
from phases.quietstar.thinker import Observed, Thinker
from phases.quietstar.window import Stage

WEIGHTS = {"semantic": 0.30, "logical": 0.25, "relevance": 0.25, "fluency": 0.20}
THRESHOLD = 0.5
_CHUNK_BYTES = 1 << 25


@dataclass(frozen=True)
class Evidence:
    """What is measured of thoughts; (N,) each, nats per token where nothing else is said."""

    cosine: Tensor  # of the tokens with what was expected, without unit
    order_gain: Tensor  # by standing in this order
    place_gain: Tensor  # by standing behind this text and not behind others
    log_probability: Tensor
    vocabulary: int


def components(evidence: Evidence) -> dict[str, Tensor]:
    """Return the four scores (N,) by name."""
    return {
        "semantic": evidence.cosine.clamp(0, 1),
        "logical": _gain(evidence.order_gain),
        "relevance": _gain(evidence.place_gain),
        "fluency": (1 + evidence.log_probability / math.log(evidence.vocabulary)).clamp(0, 1),
    }


def total(scores: dict[str, Tensor]) -> Tensor:
    """Return the weighted sum (N,)."""
    return torch.stack([WEIGHTS[name] * score for name, score in scores.items()]).sum(0)


def _gain(nats: Tensor) -> Tensor:
    """Map nats per token to [0, 1): 0 where nothing is gained, 0.63 at one nat."""
    return 1 - torch.exp(-nats.clamp_min(0))


@torch.no_grad()
def evidence(thinker: Thinker, rows: Tensor, thoughts: Tensor, config: ThoughtConfig | None = None) -> Evidence:
    """Measure `thoughts` (B, M, n), those of `thinker.observe(rows)` at its places or others to put there; N = B * M.

    `config` is what the thoughts were made with, where that is not the thinker's own.
    The places must be the same for the same rows, as they are but for random ones. Raises `ConfigError` for a single
    row: there is no other text to compare with.
    """
    if len(rows) < 2:
        raise ConfigError.of("rows", len(rows), "relevance compares texts", "give at least two")
    order = torch.arange(thoughts.shape[2], device=thoughts.device).roll(thoughts.shape[2] // 2)
    seen = thinker.observe(rows, _given(thoughts), config)
    own, cosine = _read(thinker, seen)
    reordered, _ = _read(thinker, thinker.observe(rows, _given(thoughts[:, :, order]), config))
    others = [
        _read(thinker, thinker.observe(rows, _given(thoughts.roll(by, 0)), config))[0].roll(-by, 0)
        for by in range(1, min(4, len(rows)))
    ]
    return Evidence(
        cosine=cosine.flatten(),
        order_gain=(own - reordered).flatten(),
        place_gain=(own - torch.stack(others).mean(0)).flatten(),
        log_probability=own.flatten(),
        vocabulary=len(thinker.head_weight),
    )


def _given(thoughts: Tensor) -> Source:
    """Return a source of `thoughts` (B, M, n), handed out place by place."""
    start = 0

    def source(thinker: Thinking, stage: Stage, positions: Tensor, length: int) -> Tensor:
        nonlocal start
        start += positions.shape[1]
        return thoughts[:, start - positions.shape[1] : start]

    return source


def _read(thinker: Thinker, seen: Observed) -> tuple[Tensor, Tensor]:
    """Return the mean log-probability and the mean cosine of each thought, (B, M)."""
    head, embedding = thinker.head_weight, thinker.model.embedding.weight
    centred = embedding - embedding.mean(0)
    size = max(1, _CHUNK_BYTES // (4 * len(head)))
    logs, cosines = list[Tensor](), list[Tensor]()
    for hidden, tokens in zip(seen.inner.flatten(0, 3).split(size), seen.tokens.flatten().split(size), strict=True):
        p = torch.softmax((hidden @ head.T).float(), -1)
        logs.append(p.gather(1, tokens.unsqueeze(1)).squeeze(1).clamp_min(1 / len(head)).log())
        cosines.append(F.cosine_similarity(p @ centred, centred[tokens], dim=-1))
    shape = (len(seen.tokens), -1, seen.tokens.shape[3])
    return torch.cat(logs).view(shape).mean(-1), torch.cat(cosines).view(shape).mean(-1)


def auc(real: Tensor, corrupted: Tensor) -> float:
    """Return the chance that a real thought scores higher than a corrupted one, ties counting half."""
    pairs = real.unsqueeze(1) - corrupted.unsqueeze(0)
    return float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())
