"""Quantisation-aware training: a short run from the trained parent, under its eyes.

Distillation of the logits with a tenth of cross-entropy, a scale per row by least squares, embedding and head quantised
from the first step, Muon at a learning rate far above that of ordinary fine-tuning (weights must move far enough to
change their code), and no weight decay in the second stage. A result counts only beside the full-precision control,
which gets the same rows, steps and optimiser and the best of several learning rates.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor, nn

from phases.bitnet.config import QuantisationConfig, RecipeConfig
from phases.bitnet.distill import Distillation
from phases.bitnet.titan import BitTitan, Thresholds, to_bitnet
from phases.cognate.titan import TinyTitan
from phases.training.config import TrainingConfig
from phases.training.loop import StepReport, train
from phases.training.state import TrainState

Batches = Callable[[int], Tensor]
Model = TypeVar("Model", bound=TinyTitan)


@dataclass(frozen=True)
class Lesson:
    """What training needs: the parent, the rows of each step, and what to do after one."""

    parent: TinyTitan
    batches: Batches
    on_step: Callable[[StepReport], None] = lambda report: None
    save: Callable[[TrainState], None] = lambda state: None


def quantise(
    lesson: Lesson,
    quantisation: QuantisationConfig,
    recipe: RecipeConfig,
    *,
    thresholds: Thresholds | None = None,
    learning_rate: float | None = None,
    state: TrainState | None = None,
) -> BitTitan:
    """Return the parent quantised and trained to bear it; `state` resumes where `lesson.save` was last called.

    Raises `NumericalError` where the parent or the training is not finite.
    """
    student = to_bitnet(lesson.parent, quantisation, thresholds)
    teach(student, lesson, recipe, learning_rate=learning_rate, state=state)
    return student.eval()


def teach(
    student: BitTitan,
    lesson: Lesson,
    recipe: RecipeConfig,
    *,
    learning_rate: float | None = None,
    state: TrainState | None = None,
) -> None:
    """Train a quantised student under the parent's eyes, in place."""
    _train(Distillation(student, lesson.parent, recipe.distillation), lesson, recipe.stages(learning_rate), state)


def control(lesson: Lesson, recipe: RecipeConfig, learning_rate: float) -> TinyTitan:
    """Return the parent after the same steps on the same rows in full precision, by plain cross-entropy."""
    model = copy.deepcopy(lesson.parent)
    training = recipe.training.model_copy(update={"learning_rate": learning_rate})
    _train(model, lesson, (training,), None)
    return model.eval()


def sweep(
    learning_rates: tuple[float, ...], make: Callable[[float], Model], loss: Callable[[Model], float]
) -> tuple[Model, dict[float, float]]:
    """Return the model of the learning rate with the least `loss`, and the loss of each; only the best is kept."""
    best: Model | None = None
    losses = dict[float, float]()
    for rate in learning_rates:
        model = make(rate)
        losses[rate] = loss(model)
        if losses[rate] == min(losses.values()):
            best = model
    assert best is not None, "a sweep needs at least one learning rate"
    return best, losses


def _train(model: nn.Module, lesson: Lesson, stages: tuple[TrainingConfig, ...], state: TrainState | None) -> None:
    """Run the stages in turn. Steps count on through them, in reports and in checkpoints."""
    before = 0
    for stage in stages:
        if state is None or state.step < before + stage.steps:
            own = None if state is None else replace(state, step=state.step - before)
            _stage(model, lesson, stage, own, before)
            state = None
        before += stage.steps


def _stage(model: nn.Module, lesson: Lesson, stage: TrainingConfig, state: TrainState | None, before: int) -> None:
    train(
        model,
        lambda step: lesson.batches(before + step),
        stage,
        state=state,
        on_step=lambda report: lesson.on_step(replace(report, step=before + report.step)),
        save=lambda found: lesson.save(replace(found, step=before + found.step)),
    )
