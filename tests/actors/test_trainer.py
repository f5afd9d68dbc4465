"""What agents that train keep of their checkpoints is what the configuration says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from actors.trainer import Trainer
from phases.contract import ModelRef
from phases.training.config import TrainingConfig
from phases.training.loop import StepReport
from phases.training.state import TrainState


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("kept", "hours", "left"), [(1, None, [5]), (3, None, [3, 4, 5]), (3, 1e-12, [5])])
def test_as_many_checkpoints_stay_as_configured(
    tmp_path: Path, kept: int, hours: float | None, left: list[int]
) -> None:
    found = list[int]()

    def work(
        state: TrainState | None, save: Callable[[TrainState], None], on_step: Callable[[StepReport], None]
    ) -> ModelRef:
        for step in range(1, 6):
            save(TrainState(step, "fp32", {"model.x": torch.zeros(1)}))
        found.extend(sorted(int(path.name) for path in (tmp_path / "x/checkpoints/role").iterdir()))
        return ModelRef(uri="m", sha256="0" * 64, parameters=1)

    training = TrainingConfig(checkpoints_kept=kept, checkpoint_hours=hours)
    Trainer(str(tmp_path), "phase", "role").resumed("train role", "role", "x", training, work)
    assert found == left
