"""The coordinator of phase 2: one agent hosts the search, whose evaluators Ray Tune places, and makes its result."""

from datetime import UTC, datetime

from actors.agent import Task
from actors.evomerge import Evolver
from coordinators.config import PipelineConfig
from coordinators.phase import PhaseCoordinator, Role, RunContext
from phases.contract import PhaseResult


class EvoMergeCoordinator:
    """Plans and runs phase 2 of a run."""

    def __init__(self, context: RunContext, config: PipelineConfig) -> None:
        self.config = config
        self.start = datetime.now(UTC)
        self.tasks = PhaseCoordinator(context, "evomerge")

    async def run(self) -> PhaseResult:
        """Return the result of the phase; a resumed search pays for no evaluation twice."""
        config, seed, resources = self.config.evomerge, self.config.seed, self.config.ray
        evolve = Task(
            "evolve",
            "evolver",
            "evolve",
            {
                "config": config,
                "seed": seed,
                "cpus": resources.cpus_per_trainer,
                "gpus": resources.gpus_per_trainer / config.workers,
            },
        )
        arguments = {"config": config, "seed": seed, "start": self.start}
        finish = Task("measure winner", "evolver", "finish", arguments, after=(evolve.id,))
        reports = await self.tasks.run_plan([evolve, finish], {"evolver": Role(Evolver)})
        result: PhaseResult = reports[finish.id]
        return result
