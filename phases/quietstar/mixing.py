"""How much a thought changes a prediction: a weight in (0, 1) from the hidden states without and with it.

The log-probabilities are mixed, (1 - w) log p_base + w log p_thought, and renormalised (Zelikman et al. 2024).
Since the head is linear, that is the head of the mixed hidden states, so no second set of logits is ever made. The last
layer starts at zero: at first every weight is the same, `initial_weight`. (The published code has no sigmoid, so that
its weight is bounded by nothing.)
"""

import math

import torch
from torch import Tensor, nn


class MixingHead(nn.Module):
    """2 D -> hidden -> hidden -> 1, with ReLUs, and a sigmoid around an offset."""

    def __init__(self, d_model: int, hidden: int, initial_weight: float) -> None:
        super().__init__()
        self.offset = math.log(initial_weight / (1 - initial_weight))
        last = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            nn.Linear(2 * d_model, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last
        )

    def forward(self, base: Tensor, thought: Tensor) -> Tensor:
        """Return the weight (...) of the thought, for hidden states (..., D)."""
        logits: Tensor = self.layers(torch.cat([base, thought], dim=-1)).squeeze(-1)
        return torch.sigmoid(logits.float() + self.offset)


def mix(base: Tensor, thought: Tensor, weight: Tensor) -> Tensor:
    """Return the hidden states (..., D) whose logits are the mixed ones."""
    return torch.lerp(base, thought, weight.to(base.dtype).unsqueeze(-1))
