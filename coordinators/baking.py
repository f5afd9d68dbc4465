"""The coordinator of phase 6: its seven steps as a dependency graph over nine agents.

Validating the baked model, the graph's ablation and the candidates' files need nothing of one another and run side by
side; so do memory and timing of what was chosen. What runs out of memory is done again in a fresh process, which holds
nothing of earlier tasks, and training then keeps on disk what backward passes need: the bytes stay the same.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from actors.agent import Agent, Task
from actors.baking.baking_coordinator import BakingCoordinator as Coordinator
from actors.baking.deployment_preparer import DeploymentPreparer
from actors.baking.graph_optimizer import GraphOptimizer
from actors.baking.hardware_adapter import HardwareAdapter
from actors.baking.inference_accelerator import InferenceAccelerator
from actors.baking.memory_optimizer import MemoryOptimizer
from actors.baking.model_optimizer import ModelOptimizer
from actors.baking.performance_profiler import PerformanceProfiler
from actors.baking.quality_validator import QualityValidator
from coordinators.config import PipelineConfig
from coordinators.phase import PhaseCoordinator, Role, RunContext
from phases import rundir
from phases.baking.phase import Order
from phases.contract import PhaseResult

_AGENTS: tuple[type[Agent], ...] = (
    Coordinator,
    ModelOptimizer,
    InferenceAccelerator,
    QualityValidator,
    PerformanceProfiler,
    HardwareAdapter,
    GraphOptimizer,
    MemoryOptimizer,
    DeploymentPreparer,
)
# work -> the agent's method and what it waits for
_GRAPH: dict[str, tuple[type[Agent], str, tuple[str, ...]]] = {
    "hand_off": (Coordinator, "hand_off", ()),
    "probe": (HardwareAdapter, "work", ("hand_off",)),
    "instruct": (ModelOptimizer, "instruct", ("hand_off",)),
    "bake": (ModelOptimizer, "bake", ("instruct",)),
    "validate": (QualityValidator, "validate", ("bake",)),
    "ablate": (GraphOptimizer, "work", ("bake", "probe")),
    "transform": (ModelOptimizer, "transform", ("bake",)),
    "compare": (InferenceAccelerator, "work", ("ablate", "transform")),
    "measure memory": (MemoryOptimizer, "work", ("compare",)),
    "profile": (PerformanceProfiler, "work", ("compare",)),
    "package": (DeploymentPreparer, "work", ("measure memory", "profile", "validate")),
    "audit": (QualityValidator, "audit", ("package",)),
}


class BakingCoordinator:
    """Plans and runs phase 6 of a run."""

    def __init__(self, context: RunContext, config: PipelineConfig) -> None:
        self.run_uri, self.config = context.run, config
        self.start = datetime.now(UTC)
        self.tasks = PhaseCoordinator(context, "baking")

    async def run(self) -> PhaseResult:
        """Return the result of the phase; a resumed one goes on from checkpoints and finished models."""
        return await self._finished(self.run_uri, "")

    async def run_models(self, runs: Mapping[str, str]) -> dict[str, PhaseResult]:
        """Bake several models at once with the same nine agents; `runs` has by name what hands each one on.

        Raises what the first of those that failed has raised, once all others are done.
        """
        done = await asyncio.gather(*(self._finished(run, name) for name, run in runs.items()), return_exceptions=True)
        results = dict[str, PhaseResult]()
        for name, result in zip(runs, done, strict=True):
            if isinstance(result, BaseException):
                raise result
            results[name] = result
        return results

    async def _finished(self, run: str, model: str) -> PhaseResult:
        reports = await self.tasks.run_plan(*self.plan(run), model=model)
        result: PhaseResult = reports["finish"]
        return result

    def plan(self, run: str | None = None) -> tuple[list[Task], dict[str, Role]]:
        """Return the tasks for the model that `run` (default: this one) hands on, and the agents that they need."""
        run = self.run_uri if run is None else run
        order = Order(run, rundir.handed_on(run, "baking"), self.config.baking, self.config.seed)
        frugal = replace(order, frugal=True)
        tasks = [
            Task(
                work,
                agent.__name__,
                method,
                {"order": order},
                after,
                fallback={"order": frugal},
                resumes=work in ("instruct", "bake"),
            )
            for work, (agent, method, after) in _GRAPH.items()
        ]
        arguments, fallback = ({"order": each, "start": self.start} for each in (order, frugal))
        tasks.append(Task("finish", Coordinator.__name__, "finish", arguments, after=("audit",), fallback=fallback))
        resources = self.config.ray
        roles = {agent.__name__: Role(agent, 0 if agent is Coordinator else 1) for agent in _AGENTS}
        trainer = Role(ModelOptimizer, resources.cpus_per_trainer, resources.gpus_per_trainer)
        return tasks, roles | {ModelOptimizer.__name__: trainer}
