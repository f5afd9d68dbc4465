"""The agents of phase 1: one prepares the corpus, one per model trains and measures it, one chooses."""

import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from actors.agent import Agent
from actors.trainer import Trainer
from phases import modeldir, rundir, storage
from phases.cognate import phase
from phases.cognate.config import CognateConfig
from phases.cognate.phase import Job
from phases.contract import ModelRef, PhaseResult
from phases.corpus.config import CorpusConfig
from phases.corpus.prepare import prepare
from recovery.faults import hook


class CorpusBuilder(Agent):
    """Turns the source into token files in the run directory, and takes a model into it to start from."""

    def take_model(self, task: str, uri: str) -> ModelRef:
        """Copy a model directory, and what thinks with it, into the run unless it is there; verify and return it."""
        target = storage.join(self.run_uri, rundir.START)
        if not modeldir.is_model(target):
            modeldir.copy_model(uri, target)
        return modeldir.open_ref(target).model_copy(update={"uri": rundir.START})

    def prepare(self, task: str, config: CorpusConfig, seed: int) -> dict[str, int]:
        """Prepare the corpus unless it is there, and return the number of tokens per split."""
        target = storage.join(self.run_uri, rundir.CORPUS)

        def progress(stage: str, share: float) -> None:
            self.report(task, round(100 * share), 100, {})

        with tempfile.TemporaryDirectory(prefix="forge-corpus-") as scratch:
            local = Path(target.removeprefix("file://")) if storage.is_local(target) else Path(scratch) / rundir.CORPUS
            corpus = prepare(config, seed=seed, folder=local, progress=progress)
            storage.upload_folder(local, target)
            return {split: len(corpus.tokens(split)) for split in ("train", "validation", "test")}


class Pretrainer(Trainer):
    """Trains one model, and measures it."""

    def train(self, task: str, job: Job, seed: int) -> ModelRef:
        """Train the job's model and return its reference."""
        given = replace(job, training=self.slowed(job.training))
        return self.resumed(
            task,
            job.role,
            phase.FOLDER,
            job.training,
            lambda state, save, on_step: phase.pretrain(
                given, self.run_uri, seed, state=state, save=save, on_step=on_step
            ),
        )

    def evaluate(self, task: str, role: str, config: CognateConfig, seed: int) -> None:
        """Measure the model; the findings are in the run directory."""
        torch.set_num_threads(config.training.threads)
        hook("evaluate", role)
        phase.evaluate(self.run_uri, role, config, seed)


class Judge(Agent):
    """Chooses among the trained models."""

    def choose(self, task: str, config: CognateConfig, seed: int, start: datetime) -> PhaseResult:
        """Return the result of the phase that began at `start`."""
        torch.set_num_threads(config.training.threads)
        return phase.finish(self.run_uri, config, seed, start)
