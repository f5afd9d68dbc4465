"""The agents of phase 3: one per stage or control trains, one measures."""

from dataclasses import replace
from datetime import datetime

import torch

from actors.agent import Agent
from actors.trainer import Trainer
from phases.contract import ModelRef, PhaseResult
from phases.probes import RunFiles
from phases.quietstar import phase
from phases.quietstar.config import QuietStarConfig
from phases.quietstar.phase import Job


class ThoughtTrainer(Trainer):
    """Trains a model to think stage by stage, or the control that does not think."""

    def train(self, task: str, job: Job, config: QuietStarConfig, seed: int) -> ModelRef:
        """Train the job's model and return its reference."""
        given = replace(job, factor=self.attempt.learning_rate_factor)
        return self.resumed(
            task,
            job.name,
            phase.FOLDER,
            config.training.model_copy(update={"steps": job.stage.steps}),
            lambda state, save, on_step: phase.train_stage(
                given, self.run_uri, config, seed, state=state, save=save, on_step=on_step
            ),
        )


class ThoughtJudge(Agent):
    """Measures what thoughts are worth, and makes the phase's result."""

    def finish(self, task: str, parent: str, config: QuietStarConfig, seed: int, start: datetime) -> PhaseResult:
        """Return the result of the phase that began at `start`."""
        torch.set_num_threads(config.training.threads)
        return phase.finish(RunFiles(self.run_uri), config, seed, start, parent)
