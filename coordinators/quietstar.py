"""The coordinator of phase 3: stages one behind the other, the control beside them, what thoughts are worth."""

from datetime import UTC, datetime

from actors.agent import Task
from actors.quietstar import ThoughtJudge, ThoughtTrainer
from coordinators.config import PipelineConfig
from coordinators.phase import PhaseCoordinator, Role, RunContext
from phases import rundir
from phases.contract import PhaseResult
from phases.quietstar import phase


class QuietStarCoordinator:
    """Plans and runs phase 3 of a run."""

    def __init__(self, context: RunContext, config: PipelineConfig) -> None:
        self.run_uri, self.config = context.run, config
        self.start = datetime.now(UTC)
        self.tasks = PhaseCoordinator(context, "quietstar")

    async def run(self) -> PhaseResult:
        """Return the result of the phase; a resumed one goes on from checkpoints and finished stages."""
        reports = await self.tasks.run_plan(*self.plan())
        result: PhaseResult = reports["finish"]
        return result

    def plan(self) -> tuple[list[Task], dict[str, Role]]:
        """Return the tasks and the agents that they need."""
        config, resources = self.config.quietstar, self.config.ray
        parent = rundir.handed_on(self.run_uri, "quietstar").uri
        shared = {"config": config, "seed": self.config.seed}
        tasks, before = list[Task](), tuple[str, ...]()
        for job in phase.jobs(config, parent):
            task = Task(f"train {job.name}", "thinker", "train", {"job": job} | shared, after=before, resumes=True)
            tasks.append(task)
            before = (task.id,)
        control = phase.control_job(config, parent)
        tasks.append(Task(f"train {control.name}", control.name, "train", {"job": control} | shared, resumes=True))
        arguments = {"parent": parent, "start": self.start} | shared
        finish = Task("finish", "judge", "finish", arguments, after=tuple(task.id for task in tasks))
        trainer = Role(ThoughtTrainer, resources.cpus_per_trainer, resources.gpus_per_trainer)
        return [*tasks, finish], {"thinker": trainer, control.name: trainer, "judge": Role(ThoughtJudge, 1)}
