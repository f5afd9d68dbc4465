"""A model that knows at once what it used to think first: thoughts become ponder steps.

Fast-Quiet-STaR shortens thoughts stage by stage and ends with none. What a thought works out in n tokens, one after
the other, a single pass through the stack cannot; several can, and a TinyTitan has them. So in the stage without
thoughts, ponder step s at a place learns to predict token s of the thought that the model before had there, and the
last steps the text behind it: the "vertical" chain of thought of Deng et al. 2023 (Implicit Chain of Thought Reasoning
via Knowledge Distillation), with thoughts that nobody but the model itself wrote. Places are those where the thought
was of use; all others learn the text at every step, as in training without thoughts.

Shapes: B rows, T tokens, S ponder steps, P places, n thought tokens.
"""

import torch
from torch import Tensor, nn

from phases.cognate.titan import TinyTitan
from phases.quietstar.measure import GREEDY
from phases.quietstar.sources import sampled
from phases.quietstar.thinker import Thinker
from phases.training.losses import linear_cross_entropy

WORTH = 0.1  # nats that a thought has to save of the next token; less is chance at most places


class Internaliser(nn.Module):
    """Teaches a copy of a thinker's model, with a ponder step for each token of its thoughts and one more."""

    def __init__(self, teacher: Thinker) -> None:
        """Learn from `teacher`, which stays as it is. A model with fewer ponder steps skips tokens evenly."""
        super().__init__()
        config = teacher.model.config
        steps = max(config.train_ponder_steps, min(config.max_ponder_steps, teacher.config.length + 1))
        self.model = TinyTitan(config.model_copy(update={"train_ponder_steps": steps}))
        self.model.load_state_dict(teacher.model.state_dict())
        self._teacher = [teacher.eval()]  # in a list: none of this module's parameters

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix (V, D)."""
        return self.model.head_weight

    def loss(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss of `rows` (B, T + 1) and metrics.

        Places with a thought weigh as much together as the whole text, however few they are.
        """
        targets, thought = self.targets(rows)
        segments = list(self.model.segments(rows, supervised=False))
        hiddens = torch.cat([segment.ran.hiddens for segment in segments], dim=2)
        weights = 1 / targets.numel() + thought / (len(targets) * thought.sum().clamp_min(1))
        loss, _ = linear_cross_entropy(
            self.model.norm(hiddens).flatten(0, 2),
            self.head_weight,
            targets.flatten(),
            weights.expand_as(targets).flatten(),
        )
        total, metrics = self.model.with_halting(loss, segments)
        return total, metrics | {"thought_share": thought.float().mean()}

    @torch.no_grad()
    def targets(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each ponder step is to predict (S, B, T), and the places (B, T) where that is a thought."""
        teacher, n_steps = self._teacher[0], self.model.config.train_ponder_steps
        config = teacher.config.model_copy(update={"parallel": 1, "lookahead": 1})
        seen = teacher.observe(rows, sampled(GREEDY), config)
        nll = teacher.nll(seen, torch.ones_like(seen.weight))[1][:, :, 0, 0]
        helped = nll < seen.base_nll.gather(1, seen.positions) - WORTH  # (B, P)
        targets = rows[:, 1:].repeat(n_steps, 1, 1)
        for step in range(n_steps - 1):
            token, is_thought = token_of(step, n_steps, seen.lengths)
            said = seen.tokens[:, :, 0].gather(2, token.unsqueeze(2)).squeeze(2)
            text = targets[step].gather(1, seen.positions)
            targets[step].scatter_(1, seen.positions, torch.where(helped & is_thought, said, text))
        return targets, torch.zeros_like(seen.base_nll, dtype=torch.bool).scatter_(1, seen.positions, helped)


def token_of(step: int, n_steps: int, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return which token of thoughts of `lengths` (B, P) a step predicts, and whether it predicts one at all.

    A thought of fewer tokens than there are steps before the last is over early; of a longer one, some are left out.
    """
    before = n_steps - 1
    spread = ((step + 1) * lengths + before - 1) // before - 1
    token = torch.where(lengths > before, spread, step)
    return token.clamp_max(lengths - 1), token < lengths
