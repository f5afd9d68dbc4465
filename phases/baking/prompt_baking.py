"""Prompt baking: a model's weights take over what a prompt did (Bhargava et al. 2024, arXiv 2409.13697).

The student sees the conversation without the prompt and learns the prompted teacher's whole distribution at each token
of replies that the teacher sampled. Done alone, this makes a model deaf to other prompts; so a quarter of each batch
are retention examples, whose prompt both see. Teacher and student are one model with adapters off and on.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from phases.baking.config import PromptBakingConfig
from phases.baking.examples import Example, reply_logits, reply_outputs_each
from phases.baking.lora import Adapted
from phases.baking.losses import token_losses
from phases.cognate.titan import TinyTitan
from phases.errors import NumericalError
from phases.seeds import child_seed, numpy_rng, torch_rng
from phases.training.loop import StepReport, train
from phases.training.state import TrainState


class Student(nn.Module):
    """What is trained: the adapters of a model, on examples that a batch names by their numbers.

    What the teacher makes of them is computed once, for it never changes.
    """

    def __init__(
        self, adapted: Adapted, examples: Sequence[Example], retained: Sequence[Example], config: PromptBakingConfig
    ) -> None:
        super().__init__()
        self.adapted, self.config = adapted, config
        self.examples, self.baked = [*examples, *retained], len(examples)
        with adapted.at(0.0) as teacher:
            self.wanted = reply_outputs_each(teacher, [(example.teacher, example.reply) for example in self.examples])

    def loss(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the reply tokens of the examples with the numbers `rows` (B, 1).

        In fp32 whatever the loop runs in: divergences of a thousandth of a nat are below what bf16 can tell.
        """
        numbers, losses = rows.flatten().tolist(), list[Tensor]()
        # Retained examples have prompts and are several times as long: in rows of their own less of a row is padding.
        for part in ([n for n in numbers if n < self.baked], [n for n in numbers if n >= self.baked]):
            if part:
                with torch.autocast(rows.device.type, enabled=False):
                    losses.append(self._losses(part))
        loss = torch.cat(losses).mean()
        return loss, {"kl": loss.detach()}

    def _losses(self, numbers: Sequence[int]) -> Tensor:
        """Return the losses of the examples' reply tokens (N,)."""
        model, chosen = self.adapted.model, [self.examples[number] for number in numbers]
        replies = [example.reply for example in chosen]
        wanted = torch.cat([self.wanted[number] for number in numbers]) @ model.head_weight.T
        given = reply_logits(model, [example.student for example in chosen], replies)
        sampled = torch.tensor([token for reply in replies for token in reply], device=given.device)
        return token_losses(self.config.loss, wanted, given, sampled)


def bake(
    model: TinyTitan,
    examples: Sequence[Example],
    retained: Sequence[Example],
    config: PromptBakingConfig,
    seed: int,
    *,
    state: TrainState | None = None,
    save: Callable[[TrainState], None] = lambda state: None,
    on_step: Callable[[StepReport], None] = lambda step: None,
) -> Adapted:
    """Put adapters into `model` and train them. Its own weights stay as they are.

    Raises `NumericalError` where a weight of the model, a loss or a gradient is not finite.
    """
    check_finite(model)
    adapted = Adapted(model, config.lora, torch_rng(seed, "lora"))
    share = config.retention if retained else 0.0
    student = Student(adapted, examples, retained, config)
    batches = mixed_batches(len(examples), len(retained), config.training.batch_size, share, child_seed(seed, "bake"))
    train(student, batches, config.training, state=state, on_step=on_step, save=save)
    model.eval()
    return adapted


def mixed_batches(count: int, retained: int, size: int, share: float, seed: int) -> Callable[[int], Tensor]:
    """Return step -> numbers (B, 1): of the first `count` examples and, to the `share`, of the `retained` behind."""
    others = round(size * share)

    def batch(step: int) -> Tensor:
        rng = numpy_rng(seed, "batch", step)
        numbers = rng.integers(count, size=size - others)
        kept = count + rng.integers(retained, size=others) if others else numbers[:0]
        return torch.from_numpy(numbers).unsqueeze(1) if not others else torch.tensor([*numbers, *kept]).unsqueeze(1)

    return batch


def check_finite(model: TinyTitan) -> None:
    """Raise `NumericalError` naming a weight that is not finite."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise NumericalError(f"{name} has values that are not finite; start from a model that is sound")
