"""The agents of phase 4: one per model trains a candidate or a control, one chooses, exports and measures."""

from dataclasses import replace
from datetime import datetime

import torch

from actors.agent import Agent
from actors.trainer import Trainer
from phases.bitnet import phase
from phases.bitnet.config import BitNetConfig
from phases.bitnet.phase import Job
from phases.contract import ModelRef, PhaseResult
from phases.probes import RunFiles


class Calibrator(Agent):
    """Collects the statistics that thresholds are chosen by."""

    def calibrate(self, task: str, parent: ModelRef, config: BitNetConfig, seed: int) -> None:
        """Measure the parent's activations; what is found is in the run directory."""
        torch.set_num_threads(config.recipe.training.threads)
        phase.calibrate(self.run_uri, parent, config, seed)


class Quantiser(Trainer):
    """Trains one candidate, or one full-precision control."""

    def train(self, task: str, job: Job, config: BitNetConfig, seed: int) -> ModelRef:
        """Train the job's model and return its reference."""
        given = replace(job, factor=self.attempt.learning_rate_factor)
        return self.resumed(
            task,
            job.name,
            phase.FOLDER,
            config.recipe.training,
            lambda state, save, on_step: phase.train(
                given, self.run_uri, config, seed, state=state, save=save, on_step=on_step
            ),
        )


class Exporter(Agent):
    """Makes files of the best candidate, and the phase's result."""

    def finish(self, task: str, parent: ModelRef, config: BitNetConfig, seed: int, start: datetime) -> PhaseResult:
        """Return the result of the phase that began at `start`."""
        torch.set_num_threads(config.recipe.training.threads)
        return phase.finish(RunFiles(self.run_uri), parent, config, seed, start)
