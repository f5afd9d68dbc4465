"""The agents of phase 1: one prepares the corpus, one per model trains and measures it, one chooses."""

import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from actors.agent import Agent
from actors.metrics import StepGauges
from phases import rundir, storage
from phases.cognate import phase
from phases.cognate.config import CognateConfig
from phases.cognate.phase import Job
from phases.contract import ModelRef, PhaseResult
from phases.corpus.config import CorpusConfig
from phases.corpus.prepare import prepare
from phases.training.loop import StepReport
from phases.training.state import TrainState
from recovery.checkpoints import Checkpoints
from recovery.faults import hook
from recovery.journal import Journal

_RECORDS = 200  # metric records per training run, whatever its number of steps


class CorpusBuilder(Agent):
    """Turns the source into token files in the run directory."""

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


class Pretrainer(Agent):
    """Trains one model from its newest good checkpoint, and measures it."""

    def train(self, task: str, job: Job, seed: int) -> ModelRef:
        """Train the job's model and return its reference."""
        torch.set_num_threads(job.training.threads)
        rate = job.training.learning_rate * self.attempt.learning_rate_factor
        job = replace(job, training=job.training.model_copy(update={"learning_rate": rate}))

        def passed_over(problem: str) -> None:
            Journal(self.run_uri).append("checkpoint_passed_over", role=job.role, problem=problem)

        folder = storage.join(self.run_uri, f"{phase.FOLDER}/checkpoints/{job.role}")
        checkpoints = Checkpoints(folder, on_damage=passed_over)
        newest = checkpoints.newest()
        gauges = StepGauges(self.phase, job.role)
        every = max(1, job.training.steps // _RECORDS)

        def on_step(step: StepReport) -> None:
            metrics = {"loss": step.loss, "grad_norm": step.grad_norm, "learning_rate": step.learning_rate}
            metrics |= step.metrics | {"tokens_per_second": step.tokens / step.seconds}
            self.report(task, step.step, job.training.steps, metrics)
            gauges.set(metrics)
            if step.step % every == 0 or step.step == job.training.steps:
                self.log_metrics(f"{phase.FOLDER}/metrics.jsonl", {"task": job.role, "step": step.step} | metrics)

        def save(state: TrainState) -> None:
            checkpoints.save(state.step, state.to_files(), phase=self.phase, role=job.role)

        state = TrainState.from_files(newest.files) if newest else None
        ref = phase.pretrain(job, self.run_uri, seed, state=state, save=save, on_step=on_step)
        checkpoints.clear()
        return ref

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
