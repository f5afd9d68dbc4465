"""The coordinator of a run: phases in order, each finished one kept.

It writes the journal, which is what a resume goes by: a phase whose result is the one that the journal recorded, and
whose model's hashes verify, is not run again. It holds no tensors, and its buffer of events for the driver is bounded.
"""

import asyncio
from collections import deque
from importlib import import_module
from typing import Any, Protocol

from actors.agent import as_actor, start_named
from coordinators.config import PipelineConfig
from coordinators.health import HealthFeed
from coordinators.phase import RunContext
from coordinators.start import take_model
from phases import modeldir, rundir, storage
from phases.contract import PhaseResult
from phases.errors import ArtifactError
from recovery.faults import hook
from recovery.journal import Journal
from recovery.strategies import History

_COORDINATORS = {
    "cognate": "CognateCoordinator",
    "evomerge": "EvoMergeCoordinator",
    "quietstar": "QuietStarCoordinator",
    "bitnet": "BitNetCoordinator",
    "baking": "BakingCoordinator",
}
_JOURNALLED = {
    "phase_started",
    "task_started",
    "task_finished",
    "task_failed",
    "recovery",
    "agent_given_up",
    "breaker",
    "alert",
}
_NOTED = {"phase_started", "task_started", "task_finished", "breaker"}  # what tells, but decides nothing
_EVENTS_KEPT = 10_000


class Coordinator(Protocol):
    """Plans and runs one phase."""

    def __init__(self, context: RunContext, config: PipelineConfig) -> None: ...

    async def run(self) -> PhaseResult:
        """Return the result of the phase."""


class PipelineCoordinator:
    """Runs the phases of one run; `events` is what the driver shows."""

    def __init__(self, run: str, config: PipelineConfig, epoch: int | None = None) -> None:
        self.run_uri, self.config = run, config
        self.journal = Journal(run, epoch)
        self.health = HealthFeed(run, config.alerts.health, self._emit)
        self.context = RunContext(
            run=run,
            emit=self._emit,
            seed=config.seed,
            recovery=config.recovery,
            supervision=config.supervision,
            scheduling=config.scheduling,
            history=History(event.data for event in self.journal.read("recovery")),
        )
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)

    async def run(self) -> PhaseResult:
        """Run what is left to do and return the last phase's result."""
        async with self.health:
            return await self._run_phases()

    async def _run_phases(self) -> PhaseResult:
        result: PhaseResult | None = None
        for phase in self.config.phases:
            result = finished_result(self.run_uri, phase)
            if result is None:
                self._emit("phase_started", phase=phase)
                if phase == self.config.phases[0] and self.config.model is not None:
                    await take_model(self.context, phase, self.config.model, self.config)
                coordinator = await asyncio.to_thread(_coordinator, phase)
                result = await coordinator(self.context, self.config).run()
                hook("phase.done", phase)
                sealed = rundir.write_result(self.run_uri, result)
                self.journal.append("phase_finished", phase=phase, result_sha256=sealed)
                hook("phase.sealed", phase)
            self._emit("phase_finished", phase=phase)
        assert result is not None
        return result

    async def events(self) -> list[dict[str, Any]]:
        """Return what happened since the last call."""
        taken = list(self._events)
        self._events.clear()
        return taken

    def _emit(self, kind: str, **data: Any) -> None:
        if kind in _JOURNALLED:
            (self.journal.note if kind in _NOTED else self.journal.append)(kind, **data)
        self.health.note(kind, data)
        self._events.append({"kind": kind} | data)


def _coordinator(phase: str) -> type[Coordinator]:
    """Import a phase's coordinator with its agents. Those of other phases would only delay a restart, by seconds."""
    found: type[Coordinator] = getattr(import_module(f"coordinators.{phase}"), _COORDINATORS[phase])
    return found


def finished_result(run: str, phase: str) -> PhaseResult | None:
    """Return the result of a phase that is finished and whole, else None.

    Raises `ArtifactError` where the result or its model is not what the journal recorded: that is not a crash.
    """
    recorded = [e.data["result_sha256"] for e in Journal(run).read("phase_finished") if e.data["phase"] == phase]
    if not recorded:
        return None
    path = storage.join(run, rundir.result_path(phase))
    if storage.sha256(path) != recorded[-1]:
        raise ArtifactError(f"{path}: altered after the run; restore it, or start a new run")
    result = rundir.read_result(run, phase)
    if result.model is not None:
        modeldir.open_ref(storage.join(run, result.model.uri), result.model.sha256)
    return result


def spawn_pipeline(run: str, config: PipelineConfig, epoch: int) -> Any:
    """Start the coordinator as the Ray actor `<run>/pipeline`, which works under an epoch of the run's lease."""
    return start_named(
        as_actor(PipelineCoordinator, f"{storage.folder_name(run)}/pipeline", num_cpus=0), run, config, epoch
    )
