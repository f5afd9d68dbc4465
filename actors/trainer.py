"""What agents that train have in common: checkpoints that they go on from, progress, gauges and a file of metrics."""

import math
from collections.abc import Callable

import torch

from actors.agent import Agent
from actors.metrics import StepGauges
from phases.contract import ModelRef
from phases.probes import RunFiles
from phases.training.config import TrainingConfig
from phases.training.loop import StepReport
from phases.training.state import TrainState
from recovery.checkpoints import Checkpoints
from recovery.journal import Journal

_RECORDS = 200  # metric records per training run, whatever its number of steps
Work = Callable[[TrainState | None, Callable[[TrainState], None], Callable[[StepReport], None]], ModelRef]
"""Trains from a state, or from the start, given what to do with later states and with each step."""


class Trainer(Agent):
    """An agent whose tasks are training runs."""

    def slowed(self, training: TrainingConfig) -> TrainingConfig:
        """Return the training with the learning rate that is left after rollbacks."""
        rate = training.learning_rate * self.attempt.learning_rate_factor
        return training.model_copy(update={"learning_rate": rate})

    def resumed(self, task: str, role: str, folder: str, training: TrainingConfig, work: Work) -> ModelRef:
        """Do `work` from the newest good checkpoint of `role`, and return its model.

        `folder` is the phase's, in the run unless it is absolute.
        """
        torch.set_num_threads(training.threads)

        def passed_over(problem: str) -> None:
            Journal(self.run_uri).append("checkpoint_passed_over", role=role, problem=problem)

        hours = math.inf if training.checkpoint_hours is None else training.checkpoint_hours
        folder_of_role = RunFiles(self.run_uri).path(f"{folder}/checkpoints/{role}")
        checkpoints = Checkpoints(folder_of_role, training.checkpoints_kept, 3600 * hours, on_damage=passed_over)
        newest = checkpoints.newest()
        gauges = StepGauges(self.phase, role)
        every = max(1, training.steps // _RECORDS)

        def on_step(step: StepReport) -> None:
            metrics = {"loss": step.loss, "grad_norm": step.grad_norm, "learning_rate": step.learning_rate}
            metrics |= step.metrics | {"tokens_per_second": step.tokens / step.seconds}
            self.report(task, step.step, training.steps, metrics)
            gauges.set(metrics)
            if step.step % every == 0 or step.step == training.steps:
                self.log_metrics(f"{folder}/metrics.jsonl", {"task": role, "step": step.step} | metrics)

        def save(state: TrainState) -> None:
            checkpoints.save(state.step, state.to_files(), phase=self.phase, role=role)

        ref = work(TrainState.from_files(newest.files) if newest else None, save, on_step)
        checkpoints.clear()
        return ref
