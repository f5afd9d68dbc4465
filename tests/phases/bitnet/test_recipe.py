"""The training recipe: its stages, that resuming changes nothing, the control, and the choice of a learning rate."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from phases.bitnet.config import QuantisationConfig, RecipeConfig
from phases.bitnet.recipe import Lesson, control, quantise, sweep
from phases.cognate.titan import TinyTitan
from phases.training.config import TrainingConfig
from phases.training.state import TrainState

RECIPE = RecipeConfig(
    training=TrainingConfig(
        steps=6, batch_size=2, warmup_steps=1, checkpoint_every=2, precision="fp32", optimizer="muon"
    )
)


def batches(step: int) -> Tensor:
    return torch.randint(16, 300, (2, 33), generator=torch.Generator().manual_seed(step))


def test_stages_share_steps_and_the_second_does_not_decay() -> None:
    first, second = RECIPE.stages(8e-3)
    assert (first.steps, second.steps) == (3, 3)
    assert first.learning_rate == 8e-3
    assert second.learning_rate == first.learning_rate * first.final_learning_rate == 4e-3
    assert (first.weight_decay, second.weight_decay) == (RECIPE.training.weight_decay, 0)
    assert len(RECIPE.model_copy(update={"second_stage": 0.0}).stages()) == 1


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_run_ends_with_the_same_weights(titan: TinyTitan, stop: int) -> None:
    states, seen = list[TrainState](), list[int]()
    lesson = Lesson(titan, batches, on_step=lambda report: seen.append(report.step), save=states.append)
    recipe = RECIPE.model_copy(update={"training": RECIPE.training.model_copy(update={"steps": 8})})
    whole = quantise(lesson, QuantisationConfig(), recipe)
    assert seen == list(range(1, 9))
    assert [state.step for state in states] == [2, 6]
    state = states[0] if stop == 2 else states[1]
    resumed = quantise(replace(lesson, save=lambda found: None), QuantisationConfig(), recipe, state=state)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_control_trains_on_the_same_rows_in_full_precision(titan: TinyTitan) -> None:
    before, asked = titan.blocks[0].qkv.weight.clone(), list[int]()
    lesson = Lesson(titan, lambda step: (asked.append(step), batches(step))[1])
    model = control(lesson, RECIPE, 1e-3)
    assert asked == list(range(6))
    assert type(model) is TinyTitan
    assert torch.equal(titan.blocks[0].qkv.weight, before)
    assert not torch.equal(model.blocks[0].qkv.weight, before)


def test_sweep_takes_the_best() -> None:
    models = {rate: torch.nn.Linear(1, 1) for rate in (1.0, 2.0, 3.0)}
    best, losses = sweep((1.0, 2.0, 3.0), models.__getitem__, lambda m: {1.0: 3, 2.0: 1, 3.0: 2}[_key(models, m)])
    assert best is models[2.0]
    assert losses == {1.0: 3, 2.0: 1, 3.0: 2}


def _key(models: dict[float, torch.nn.Linear], model: object) -> float:
    return next(rate for rate, found in models.items() if found is model)
