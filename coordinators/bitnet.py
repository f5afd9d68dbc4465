"""The coordinator of phase 4: calibration, candidates and controls side by side, the choice and its files."""

from datetime import UTC, datetime

from actors.agent import Task
from actors.bitnet import Calibrator, Exporter, Quantiser
from coordinators.config import PipelineConfig
from coordinators.phase import PhaseCoordinator, Role, RunContext
from phases import rundir
from phases.bitnet import phase
from phases.contract import PhaseResult


class BitNetCoordinator:
    """Plans and runs phase 4 of a run."""

    def __init__(self, context: RunContext, config: PipelineConfig) -> None:
        self.run_uri, self.config = context.run, config
        self.start = datetime.now(UTC)
        self.tasks = PhaseCoordinator(context, "bitnet")

    async def run(self) -> PhaseResult:
        """Return the result of the phase; a resumed one goes on from checkpoints and finished models."""
        reports = await self.tasks.run_plan(*self.plan())
        result: PhaseResult = reports["finish"]
        return result

    def plan(self) -> tuple[list[Task], dict[str, Role]]:
        """Return the tasks and the agents that they need."""
        config, resources = self.config.bitnet, self.config.ray
        parent = rundir.handed_on(self.run_uri, "bitnet")
        shared = {"config": config, "seed": self.config.seed}
        first = [Task("calibrate", "calibrator", "calibrate", {"parent": parent} | shared)]
        if not config.quantisation.calibrated:
            first = []
        trained = [
            Task(
                f"train {job.name}",
                job.name,
                "train",
                {"job": job} | shared,
                after=tuple(task.id for task in first),
                resumes=True,
            )
            for job in phase.jobs(parent, config)
        ]
        arguments = {"parent": parent, "start": self.start} | shared
        finish = Task("finish", "exporter", "finish", arguments, after=tuple(task.id for task in trained))
        trainer = Role(Quantiser, resources.cpus_per_trainer, resources.gpus_per_trainer)
        roles = {task.agent: trainer for task in trained} | {"exporter": Role(Exporter, 1)}
        return [*first, *trained, finish], roles | ({"calibrator": Role(Calibrator, 1)} if first else {})
