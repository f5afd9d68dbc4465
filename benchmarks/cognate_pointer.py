"""Variable-depth pointer chase: does a halting rule spend steps where they are needed?

16 nodes in chains of random length, each pointing to the next, the last of a chain to itself. Asked for the end of the
chain that the start is in, 1 to 8 hops away, a shared transformer block gets up to 10 steps. The nodes take the first
step with the start and then stand still, as tokens do that have halted; the start goes on. Every rule trains the same
network on the same instances for as many block calls, with the same deep supervision: after step n, name the node n
hops away. The rules come from `phases.cognate.halting`; only they differ.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from phases.cognate.halting import (
    HaltingHead,
    bce_halting_loss,
    geometric_kl,
    graves_act,
    halting_distribution,
    halting_targets,
    steps_taken,
)
from phases.cognate.norm import RMSNorm
from phases.seeds import torch_rng

NODES, MAX_DEPTH, CAP = 16, 8, 10
WIDTH, HEADS, BATCH, LEARNING_RATE = 64, 4, 128, 4e-3
THRESHOLD = 0.95  # the reasoning variant's
PONDER_COST, PONDER_BETA, PONDER_LAMBDA = 0.1, 0.01, 0.2  # documented penalty; PonderNet's published values
Rule = Literal["learned", "graves", "pondernet"]
RULES: tuple[Rule, ...] = ("learned", "graves", "pondernet")


@dataclass(frozen=True)
class Chases:
    """B instances of the task."""

    parents: Tensor  # (B, NODES), where each node points
    starts: Tensor  # (B,)
    hops: Tensor  # (CAP, B), the node that n + 1 hops lead to; the end of the chain points to itself
    depths: Tensor  # (B,)

    @property
    def ends(self) -> Tensor:
        """The answers (B,)."""
        return self.hops[-1]


def chases(count: int, generator: torch.Generator, depth: int | None = None) -> Chases:
    """Draw instances of one depth, or of depths uniform in 1..8."""
    depths = torch.randint(1, MAX_DEPTH + 1, (count,), generator=generator)
    depths = depths if depth is None else torch.full_like(depths, depth)
    line = torch.rand(count, NODES, generator=generator).argsort(1)  # the nodes in a row; the first is the start
    place, end = torch.arange(NODES), depths.unsqueeze(1)
    cut = (place == end) | (place == NODES - 1) | (place > end) & (torch.rand(count, NODES, generator=generator) < 0.5)
    following = torch.where(cut, place, place + 1)
    parents = torch.empty_like(line).scatter_(1, line, line.gather(1, following))
    hops = line.gather(1, torch.minimum(torch.arange(1, CAP + 1), end)).T
    return Chases(parents, line[:, 0], hops, depths)


class Chaser(nn.Module):
    """One pre-norm transformer block, applied again and again, with a classifier and a halting head."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.parent, self.start = (nn.Embedding(NODES, WIDTH) for _ in range(3))
        for embedding in (self.node, self.parent, self.start):
            nn.init.normal_(embedding.weight, std=0.5)
        self.norm_attention, self.norm_mlp, self.norm_out = (RMSNorm(WIDTH) for _ in range(3))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.classifier = nn.Linear(WIDTH, NODES)
        self.halting = HaltingHead(WIDTH)

    def forward(self, task: Chases) -> tuple[Tensor, Tensor]:
        """Return the start's states (CAP, B, WIDTH) and halting logits (CAP, B) after each step."""
        nodes = self.node.weight + self.parent(task.parents)
        h = torch.cat([nodes, self.start(task.starts).unsqueeze(1)], dim=1)  # (B, NODES + 1, WIDTH)
        h = self._finish(h, *self._project(h))
        _, keys, values = self._project(h[:, :-1])
        x, states = h[:, -1:], [h[:, -1]]
        for _ in range(CAP - 1):
            q, k, v = self._project(x)
            x = self._finish(x, q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2))
            states.append(x[:, 0])
        normed = self.norm_out(torch.stack(states))
        return normed, self.halting(normed)

    def _project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(self.norm_attention(h)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _finish(self, h: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        h = h + self.mix(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        finished: Tensor = h + self.mlp(self.norm_mlp(h))
        return finished


def halting_loss(rule: Rule, model: Chaser, states: Tensor, logits: Tensor, ends: Tensor) -> Tensor:
    """Return what the rule adds to the common loss, for states (N, B, WIDTH) and halting `logits` (N, B)."""
    lambdas = torch.sigmoid(logits)
    answers = model.classifier(states)
    match rule:
        case "learned":
            return bce_halting_loss(logits, halting_targets((answers.argmax(-1) != ends).float()))
        case "graves":
            weights, cost = graves_act(lambdas)
            mean_state = (weights.unsqueeze(-1) * states).sum(0)
            return F.cross_entropy(model.classifier(mean_state), ends) + PONDER_COST * cost.mean()
        case "pondernet":
            p = halting_distribution(lambdas)
            losses = F.cross_entropy(
                answers.permute(1, 2, 0), ends.unsqueeze(1).expand(-1, len(states)), reduction="none"
            )
            return (p * losses.T).sum(0).mean() + PONDER_BETA * geometric_kl(p, PONDER_LAMBDA).mean()


def train_chaser(rule: Rule, seed: int, iterations: int) -> Chaser:
    """Train one network: AdamW, constant and then linearly falling learning rate."""
    torch.manual_seed(seed)
    generator = torch_rng(seed, "pointer", "train")
    model = Chaser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    for iteration in range(iterations):
        falling = min(1.0, 2 * (1 - iteration / iterations))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min((iteration + 1) / 50, max(0.05, falling))
        task = chases(BATCH, generator)
        states, logits = model(task)
        named = F.cross_entropy(model.classifier(states).flatten(0, 1), task.hops.flatten())
        loss = named + halting_loss(rule, model, states, logits, task.ends)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@dataclass(frozen=True)
class Chased:
    """What a trained network does on test instances, as many of each depth."""

    accuracy: float
    mean_steps: float
    correlation: float  # Spearman's, of steps and depth
    by_depth: tuple[float, ...]  # accuracies
    steps_by_depth: tuple[float, ...]
    fixed: dict[int, tuple[float, ...]]  # accuracies by depth when everyone takes so many steps


@torch.no_grad()
def measure_chaser(rule: Rule, model: Chaser, seed: int, count: int, *, sampled: bool = False) -> Chased:
    """Let the network halt by its rule on `count` fresh instances of each depth.

    Graves ACT answers from its weighted mean; the others from the step at which the probability of having halted
    passes the threshold. `sampled` draws that step instead, as PonderNet was published.
    """
    generator = torch_rng(seed, "pointer", "test")
    accuracies, steps, fixed = [], [], dict[int, list[float]]({2: [], 5: []})
    for depth in range(1, MAX_DEPTH + 1):
        task = chases(count, generator, depth)
        states, logits = model(task)
        lambdas = torch.sigmoid(logits)
        if rule == "graves":
            weights, _ = graves_act(lambdas)
            taken, state = (weights > 0).sum(0), (weights.unsqueeze(-1) * states).sum(0)
        else:
            drawn = torch.multinomial(halting_distribution(lambdas).T, 1, generator=generator)[:, 0] + 1
            taken = drawn if sampled else steps_taken(lambdas, THRESHOLD)
            state = states[taken - 1, torch.arange(count)]
        accuracies.append(_accuracy(model, state, task))
        steps.append(taken)
        for at, found in fixed.items():
            found.append(_accuracy(model, states[at - 1], task))
    depths = torch.arange(1, MAX_DEPTH + 1).repeat_interleave(count)
    everything = torch.cat(steps)
    varied = bool((everything != everything[0]).any())
    return Chased(
        accuracy=sum(accuracies) / MAX_DEPTH,
        mean_steps=float(everything.float().mean()),
        correlation=float(spearmanr(everything, depths).statistic) if varied else 0.0,
        by_depth=tuple(accuracies),
        steps_by_depth=tuple(float(taken.float().mean()) for taken in steps),
        fixed={at: tuple(found) for at, found in fixed.items()},
    )


def _accuracy(model: Chaser, state: Tensor, task: Chases) -> float:
    return float((model.classifier(state).argmax(-1) == task.ends).float().mean())
