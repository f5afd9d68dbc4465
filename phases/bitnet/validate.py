"""Whether a quantised model may be used: checks that are computed, each of which can fail.

Weights must be finite, ternary matrices must have zeros but not be made of them, no row of a block may be dead, and the
model must have learned something: it has to cost fewer bits than the frequencies of its own tokens do on the same text.
(Bytes would be the wrong baseline. A tokenizer alone lets random weights beat them.)
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phases.bitnet.packed import PackedModel, values
from phases.bitnet.quality import Tokens
from phases.bitnet.ternary import TernaryTensor

ZEROS = (0.15, 0.6)  # share of zeros in a sound ternary matrix; 0.31 on Gaussian weights
MOST_DEAD_ROWS = 0.05


@dataclass(frozen=True)
class Check:
    """One condition: `value` has to be within `low` and `high`."""

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def ok(self) -> bool:
        """Whether it holds; a value that is not a number never does."""
        return self.low <= self.value <= self.high


def check_weights(tensors: dict[str, Tensor]) -> list[Check]:
    """Check that all values are finite; `tensors` are latent weights by name."""
    bad = sum(not bool(tensor.isfinite().all()) for tensor in tensors.values())
    return [Check("tensors that are not finite", bad, high=0)]


def check_packed(model: PackedModel) -> list[Check]:
    """Check the stored codes."""
    ternary = {name: m for name, m in model.matrices.items() if isinstance(m, TernaryTensor)}
    blocks = [name for name in model.matrices if name.startswith("blocks.")]
    found = [Check("block matrices that are not ternary", sum(name not in ternary for name in blocks), high=0)]
    zeros = [matrix.zeros for matrix in ternary.values()] or [math.nan]
    found.append(Check("smallest share of zeros in a ternary matrix", min(zeros), *ZEROS))
    found.append(Check("largest share of zeros in a ternary matrix", max(zeros), *ZEROS))
    dead = [float((values(m) == 0).all(1).double().mean()) for m in model.matrices.values()]
    found.append(Check("largest share of dead rows in a matrix", max(dead), high=MOST_DEAD_ROWS))
    return found


def check_text(nats_per_token: float, rows: Tokens) -> list[Check]:
    """Check that a model is better than the frequencies of the tokens (B, T + 1) that it was measured on."""
    return [Check("bits per token", nats_per_token / math.log(2), high=unigram_bits(rows[:, 1:]))]


def unigram_bits(tokens: Tokens) -> float:
    """Return the entropy of the tokens' own frequencies, in bits: the least that any model without context costs."""
    counts = np.bincount(tokens.ravel()).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def report(checks: list[Check], skipped: list[str], measured: dict[str, Any]) -> dict[str, Any]:
    """Return the documented report. What was skipped for want of data keeps a model from being ready."""
    failed = [check.name for check in checks if not check.ok]
    summary = {"production_ready": not failed and not skipped, "failed": failed, "skipped": skipped, **measured}
    details = [{"name": c.name, "value": c.value, "low": c.low, "high": c.high, "ok": c.ok} for c in checks]
    return {"final_report": {"executive_summary": summary, "checks": details}}


@torch.inference_mode()
def nats_per_token(model: Any, rows: Tokens) -> float:
    """Return the mean cross-entropy of a model on `rows` (B, T + 1)."""
    device = model.embedding.weight.device
    return float(model.eval().evaluate(torch.from_numpy(rows).to(device)).nll.double().mean())
