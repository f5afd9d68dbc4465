"""When to stop thinking: three published halting rules and the one rule by which inference stops.

Every function takes one number per ponder step, with the steps in the first axis: `(N, ...)`, any shape behind it.
Graves ACT and PonderNet learn to halt through a cost on steps; learned halting instead regresses, at every step, on
whether waiting any longer would have helped. At inference all three stop where the probability of having halted
passes a threshold. `forge bench cognate` compares them; nothing here knows of transformers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HaltingHead(nn.Module):
    """One logit of halting for each hidden state: d + 1 parameters."""

    def __init__(self, d_model: int, bias: float = -1.0) -> None:
        """Start at a halting probability of sigmoid(`bias`); a low one lets early training see all its steps."""
        super().__init__()
        self.linear = nn.Linear(d_model, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., D) to logits (...)."""
        logits: Tensor = self.linear(hidden).squeeze(-1)
        return logits


def halting_distribution(lambdas: Tensor) -> Tensor:
    """Return p_n = lambda_n * prod_{j<n} (1 - lambda_j), (N, ...); the last step takes what remains.

    PonderNet, Banino et al. 2021, eq. 5, truncated at N steps.
    """
    going_on = torch.cumprod(1 - lambdas, dim=0)
    reached = torch.cat([torch.ones_like(lambdas[:1]), going_on[:-1]])
    return torch.cat([(lambdas * reached)[:-1], reached[-1:]])


def geometric_kl(p: Tensor, lambda_p: float) -> Tensor:
    """Return KL(p || geometric(`lambda_p`) truncated and renormalised to N steps) in nats, (...).

    PonderNet's regulariser, Banino et al. 2021, eq. 7; `p` is (N, ...) and sums to one over its first axis.
    """
    steps = torch.arange(p.shape[0], dtype=p.dtype, device=p.device)
    log_prior = torch.log_softmax(steps * torch.log1p(torch.tensor(-lambda_p, dtype=p.dtype, device=p.device)), dim=0)
    log_prior = log_prior.view(-1, *[1] * (p.dim() - 1))
    return (torch.xlogy(p, p) - p * log_prior).sum(0)


def graves_act(lambdas: Tensor, epsilon: float = 0.01) -> tuple[Tensor, Tensor]:
    """Return the weights of the steps' outputs (N, ...) and the ponder cost N_halt + R (...).

    A position halts at the first step where the sum of its lambdas reaches 1 - `epsilon`, or at the last. That step
    has the remainder R as its weight, later ones none. The cost's gradient runs through R only (Graves 2016, eq. 9-13).
    """
    total = torch.cumsum(lambdas, dim=0)
    halted = total >= 1 - epsilon
    halted[-1] = True
    before = ~halted
    at_halt = halted & torch.cat([torch.ones_like(halted[:1]), before[:-1]])
    remainder = 1 - (lambdas * before).sum(0)
    weights = lambdas * before + remainder * at_halt
    return weights, before.sum(0) + 1 + remainder


def halting_targets(losses: Tensor, tolerance: float = 0.0) -> Tensor:
    """Return 1 where no later step has a loss lower by more than `tolerance`, else 0; (N, ...), the last step 1.

    The target of learned halting: stop when waiting gains nothing, be it because the answer is found or because it is
    out of reach. (HRM and TRM regress on correctness instead; with losses of 0 and 1 the two agree on solved inputs.)
    """
    losses = losses.detach()
    best_from_here = torch.flip(torch.cummin(torch.flip(losses, [0]), dim=0).values, [0])
    return (losses - best_from_here <= tolerance).to(losses.dtype)


def bce_halting_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of halting `logits` (N, ...) against `targets`, a scalar in nats."""
    return F.binary_cross_entropy_with_logits(logits, targets)


def cumulative_halting(lambdas: Tensor) -> Tensor:
    """Return the probability 1 - prod_{j<=n} (1 - lambda_j) of having halted by each step, (N, ...)."""
    return 1 - torch.cumprod(1 - lambdas, dim=0)


def halts(cumulative: Tensor, threshold: float) -> Tensor:
    """Say where a position stops: its probability of having halted has reached `threshold`."""
    return cumulative >= threshold


def steps_taken(lambdas: Tensor, threshold: float) -> Tensor:
    """Return how many of N steps each position runs under the threshold rule, int64 (...), from 1 to N."""
    running = ~halts(cumulative_halting(lambdas), threshold)[:-1]
    return running.sum(0) + 1
