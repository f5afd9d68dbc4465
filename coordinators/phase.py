"""Running the tasks of a phase: a dependency graph over agents, side by side where there are resources.

An agent works on one task at a time and is stopped when nothing is left for it, which frees its CPUs or GPUs for one
that waits. It is started as soon as all that its task waits for is under way, so that its imports cost no time, and not
before, so that it cannot hold what those need.

A task that fails is classified and recovered by the policy of `recovery/strategies.py`; each decision is journalled
before it is carried out. An agent that no longer answers, or whose work no longer moves, is killed, which is then a
failure like others. Phases write no recovery code: they declare what a task's fallback is and whether it is optional.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.agent import Agent, Attempt, Progress, Task, spawn
from phases.errors import ConfigError, ForgeError
from recovery.classify import Classifier
from recovery.commits import Commits
from recovery.faults import hook
from recovery.strategies import Decision, Failure, History, RecoverySettings, Strategy, decide
from recovery.supervision import Pulse, SupervisionSettings

Emit = Callable[..., None]
_CLASSIFIER = Classifier()


@dataclass(frozen=True)
class Role:
    """How to start an agent of a plan."""

    agent: type[Agent]
    cpus: float = 0
    gpus: float = 0


@dataclass(frozen=True)
class RunContext:
    """What all phases of a run share. `emit(kind, **data)` takes every event."""

    run: str
    emit: Emit
    seed: int = 0
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    supervision: SupervisionSettings = field(default_factory=SupervisionSettings)
    history: History = field(default_factory=History)


@dataclass(frozen=True)
class Missing:
    """The report of a task that the phase went on without."""

    task: str
    reason: str


class PhaseCoordinator:
    """Runs the plan of one phase."""

    def __init__(self, context: RunContext, phase: str) -> None:
        self.context, self.phase, self.emit = context, phase, context.emit
        self.commits = Commits(context.run)
        self._handles: dict[str, Any] = {}
        self._tasks: Sequence[Task] = ()
        self._roles: dict[str, Role] = {}
        self._under_way: set[str] = set()
        self._busy: set[str] = set()
        self._reports: dict[str, Any] = {}

    async def run_plan(self, tasks: Sequence[Task], roles: dict[str, Role]) -> dict[str, Any]:
        """Return task id -> report, `Missing` for one that was isolated.

        Raises `ConfigError` for a plan that cannot run, and what a task raised that could not be recovered.
        """
        order = check_plan(tasks, roles)
        self._tasks, self._roles = tasks, roles
        by_id = {task.id: task for task in tasks}
        waiting = list[Task]()
        running = dict[asyncio.Task[Any], Task]()
        reports = self._reports = {}
        try:
            while order.is_active():
                waiting += [by_id[name] for name in order.get_ready()]
                busy = {task.agent for task in running.values()}
                for task in [task for task in waiting if task.agent not in busy]:
                    if task.agent not in {other.agent for other in running.values()}:
                        waiting.remove(task)
                        running[asyncio.create_task(self._run_task(task))] = task
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for finished in done:
                    task = running.pop(finished)
                    reports[task.id] = finished.result()
                    order.done(task.id)
                    self._stop_if_idle(task.agent, [t for t in tasks if t.id not in reports])
            return reports
        finally:
            for unfinished in running:
                unfinished.cancel()
            for name in list(self._handles):
                self._stop_if_idle(name, [])

    async def _run_task(self, task: Task) -> Any:
        """Return a task's report, whatever it takes within the policy's budgets."""
        if task.optional and any(isinstance(self._reports[name], Missing) for name in task.after):
            return Missing(task.id, "what it works on is missing")
        given, factor = task, 1.0
        while True:
            started = time.monotonic()
            try:
                return await self._attempt(given, factor)
            except (RayError, ForgeError, TimeoutError) as error:
                decision = self._decide(task, error, time.monotonic() - started)
                if decision.strategy is Strategy.ESCALATE:
                    raise self._stopped(task, error, decision) from error
                if decision.strategy is Strategy.ISOLATE:
                    return Missing(task.id, _message(error))
            if decision.strategy is not Strategy.RETRY:
                self._clear_the_way(task.agent)
            await asyncio.sleep(decision.delay)
            given = replace(task, arguments=task.fallback) if decision.fallback and task.fallback else task
            factor = decision.learning_rate_factor

    async def _attempt(self, task: Task, learning_rate_factor: float) -> Any:
        hook("attempt", self.phase, task.id)
        epoch = self.commits.begin(f"{self.phase}/{task.id}")
        self._busy.add(task.agent)
        watcher: asyncio.Task[None] | None = None
        try:
            handle = self._handle(task.agent)
            await handle.progress.remote()  # it has its resources and answers: from here on, silence is a failure
            self.emit("task_started", phase=self.phase, task=task.id, agent=task.agent)
            watcher = asyncio.create_task(self._watch(handle, task))
            report = await handle.run.remote(task, Attempt(epoch, learning_rate_factor))
        finally:
            self._busy.discard(task.agent)
            if watcher is not None:
                watcher.cancel()
        hook("attempted", self.phase, task.id)
        self.emit("task_finished", phase=self.phase, task=task.id, agent=task.agent)
        return report

    async def _watch(self, handle: Any, task: Task) -> None:
        """Emit the agent's progress whenever there is some, and kill an agent that shows none for too long."""
        settings, beats = self.context.supervision, -1
        pulse, progress = Pulse(settings), Progress()
        self._under_way.add(task.id)
        self._start_ahead()
        while True:
            if progress.beats != beats and progress.task == task.id and progress.steps:
                beats = progress.beats
                self.emit(
                    "progress",
                    phase=self.phase,
                    task=task.id,
                    agent=task.agent,
                    step=progress.step,
                    steps=progress.steps,
                    metrics=progress.metrics,
                )
            await asyncio.sleep(settings.poll_seconds)
            try:
                progress = await asyncio.wait_for(handle.progress.remote(), settings.hang_seconds)
            except RayError:
                return  # the call of the task itself tells
            except TimeoutError:
                return self._give_up(task, f"no sign of life in {settings.hang_seconds:g} s")
            pulse.seen(progress.beats)
            if pulse.stuck:
                return self._give_up(task, f"no progress in {settings.stall_seconds:g} s")

    def _give_up(self, task: Task, reason: str) -> None:
        """Kill the agent of a task; its call then fails at once."""
        self.emit("agent_given_up", phase=self.phase, task=task.id, agent=task.agent, reason=reason)
        self._kill(task.agent)

    def _handle(self, agent: str) -> Any:
        """Return an agent's handle, starting it where it is not there."""
        if agent not in self._handles:
            role = self._roles[agent]
            self._handles[agent] = spawn(
                role.agent, self.context.run, self.phase, agent, cpus=role.cpus, gpus=role.gpus
            )
        return self._handles[agent]

    def _start_ahead(self) -> None:
        """Start the agents whose tasks wait only for tasks that are under way or done."""
        for task in self._tasks:
            if task.id not in self._under_way and self._under_way.issuperset(task.after):
                self._handle(task.agent)

    def _decide(self, task: Task, error: Exception, seconds: float) -> Decision:
        """Classify a failure, choose what to do and journal both."""
        diagnosis = _CLASSIFIER.diagnose(error)
        failure = Failure(
            self.phase,
            task.id,
            diagnosis.error_class,
            optional=task.optional,
            has_fallback=task.fallback is not None,
            has_checkpoint=task.resumes,
        )
        decision = decide(self.context.recovery, self.context.seed, failure, self.context.history)
        record = self.context.history.add(failure, decision)
        facts = {"agent": task.agent, "error": diagnosis.cause, "seconds": round(seconds, 3)}
        self.emit("recovery", **record, **facts, reason=decision.reason, delay=round(decision.delay, 3))
        return decision

    def _stopped(self, task: Task, error: Exception, decision: Decision) -> ForgeError:
        """Journal that a task has failed for good and return what stops the run."""
        message = _message(error)
        self.emit("task_failed", phase=self.phase, task=task.id, agent=task.agent, error=message)
        cause = _cause(error)
        kind = type(cause) if isinstance(cause, ForgeError) else ForgeError
        return kind(f"{task.id}: {message}\n{decision.reason}; {decision.advice}")

    def _clear_the_way(self, agent: str) -> None:
        """Stop an agent that has failed, with what is left in its process, and those that were started ahead.

        The latter would take the resources that its successor needs, and wait for its task for ever.
        """
        for name in [name for name in self._handles if name == agent or name not in self._busy]:
            self._kill(name)
        self._under_way -= {task.id for task in self._tasks if task.agent == agent}

    def _kill(self, agent: str) -> None:
        if (handle := self._handles.pop(agent, None)) is not None:
            with suppress(RayError):
                ray.kill(handle)

    def _stop_if_idle(self, agent: str, left: Sequence[Task]) -> None:
        if agent in self._handles and not any(task.agent == agent for task in left):
            self._kill(agent)


def _cause(error: Exception) -> BaseException:
    return error.cause if isinstance(error, RayTaskError) else error


def _message(error: Exception) -> str:
    cause = _cause(error)
    return str(cause) if isinstance(cause, ForgeError) else f"{type(cause).__name__}: {cause}"


def check_plan(tasks: Sequence[Task], roles: dict[str, Role]) -> "TopologicalSorter[str]":
    """Return the prepared graph. Raises `ConfigError` naming a cycle, or a task or agent that does not exist."""
    known = {task.id for task in tasks}
    for task in tasks:
        if missing := [name for name in task.after if name not in known]:
            raise ConfigError.of("plan", task.id, f"waits for unknown tasks {missing}", "add them to the plan")
        if task.agent not in roles:
            raise ConfigError.of("plan", task.id, f"has no agent {task.agent}", f"known are {', '.join(roles)}")
    order = TopologicalSorter({task.id: task.after for task in tasks})
    try:
        order.prepare()
    except CycleError as error:
        raise ConfigError.of("plan", " -> ".join(error.args[1]), "is a cycle", "remove one dependency") from error
    return order
