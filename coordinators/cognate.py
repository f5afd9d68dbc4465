"""The coordinator of phase 1: corpus, shared warm-up, three variants side by side, their claims, the choice."""

from datetime import UTC, datetime
from typing import Any

from actors.agent import Task
from actors.cognate import CorpusBuilder, Pretrainer
from coordinators.phase import Emit, PhaseCoordinator, Role
from phases.cognate import phase
from phases.config import PipelineConfig
from phases.contract import Claim, PhaseResult


class CognateCoordinator:
    """Plans and runs phase 1 of a run."""

    def __init__(self, run: str, config: PipelineConfig, emit: Emit) -> None:
        self.run_uri, self.config = run, config
        self.tasks = PhaseCoordinator(run, "cognate", emit)

    async def run(self) -> PhaseResult:
        """Return the result of the phase; a resumed one goes on from checkpoints and finished models."""
        start = datetime.now(UTC)
        reports = await self.tasks.run_plan(*self.plan())
        claims: list[Claim] = phase.baseline_claims(self.run_uri, self.config.cognate)
        shown: list[dict[str, str]] = []
        for variant in self.config.cognate.variants:
            report: dict[str, Any] = reports[f"evaluate {variant.name}"]
            claims += report["claims"]
            shown += report["samples"]
        return phase.finish(self.run_uri, self.config.cognate, self.config.seed, claims, shown, start)

    def plan(self) -> tuple[list[Task], dict[str, Role]]:
        """Return the tasks and the agents that they need."""
        config, seed = self.config.cognate, self.config.seed
        vocab_size = self.config.corpus.vocab_size
        trainer = Role(Pretrainer, self.config.ray.cpus_per_trainer, self.config.ray.gpus_per_trainer)
        corpus = Task("corpus", "corpus", "prepare", {"config": self.config.corpus, "seed": seed})
        warm_up = Task(
            "train warm_up",
            phase.WARM_UP,
            "train",
            {"job": phase.warm_up_job(config, vocab_size), "seed": seed},
            after=(corpus.id,),
        )
        tasks = [corpus, warm_up]
        for variant in config.variants:
            job = phase.variant_job(config, variant, vocab_size)
            train = Task(f"train {job.role}", job.role, "train", {"job": job, "seed": seed}, after=(warm_up.id,))
            arguments = {"role": job.role, "config": config, "seed": seed}
            tasks += [train, Task(f"evaluate {job.role}", job.role, "evaluate", arguments, after=(train.id,))]
        roles = {task.agent: trainer for task in tasks}
        return tasks, roles | {"corpus": Role(CorpusBuilder, cpus=1)}
