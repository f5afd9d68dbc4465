"""The coordinator of phase 1: corpus, shared warm-up, three variants side by side, their claims, the choice."""

from datetime import UTC, datetime

from actors.agent import Task
from actors.cognate import CorpusBuilder, Judge, Pretrainer
from coordinators.config import PipelineConfig
from coordinators.phase import Missing, PhaseCoordinator, Role, RunContext
from phases.cognate import phase
from phases.contract import PhaseResult


class CognateCoordinator:
    """Plans and runs phase 1 of a run."""

    def __init__(self, context: RunContext, config: PipelineConfig) -> None:
        self.config = config
        self.start = datetime.now(UTC)
        self.tasks = PhaseCoordinator(context, "cognate")

    async def run(self) -> PhaseResult:
        """Return the result of the phase; a resumed one goes on from checkpoints and finished models."""
        reports = await self.tasks.run_plan(*self.plan())
        result: PhaseResult = reports["choose"]
        missing = [f"{report.task}: {report.reason}" for report in reports.values() if isinstance(report, Missing)]
        return result.model_copy(update={"degraded": tuple(missing)})

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
            resumes=True,
        )
        tasks = [corpus, warm_up]
        for variant in config.variants:
            job = phase.variant_job(config, variant, vocab_size)
            train = Task(
                f"train {job.role}",
                job.role,
                "train",
                {"job": job, "seed": seed},
                after=(warm_up.id,),
                fallback={"job": phase.smaller(job), "seed": seed},
                optional=True,
                resumes=True,
            )
            arguments = {"role": job.role, "config": config, "seed": seed}
            evaluate = Task(f"evaluate {job.role}", job.role, "evaluate", arguments, after=(train.id,), optional=True)
            tasks += [train, evaluate]
        roles = {task.agent: trainer for task in tasks} | {
            "corpus": Role(CorpusBuilder, cpus=1),
            "judge": Role(Judge, 1),
        }
        evaluated = tuple(task.id for task in tasks if task.method == "evaluate")
        tasks.append(
            Task("choose", "judge", "choose", {"config": config, "seed": seed, "start": self.start}, evaluated)
        )
        return tasks, roles
