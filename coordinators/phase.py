"""Running the tasks of a phase: a dependency graph over agents, side by side where there are resources.

An agent works on one task at a time and is stopped when nothing is left for it, which frees its CPUs or GPUs for one
that waits. It is started as soon as all that its task waits for is under way, so that its imports cost no time, and not
before, so that it cannot hold what those need. What goes wrong with a task arrives in one place, `_failed`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.agent import Agent, Progress, Task, spawn
from phases.errors import ConfigError, ForgeError

POLL_SECONDS = 0.5
Emit = Callable[..., None]


@dataclass(frozen=True)
class Role:
    """How to start an agent of a plan."""

    agent: type[Agent]
    cpus: float = 0
    gpus: float = 0


class PhaseCoordinator:
    """Runs the plan of one phase. `emit(kind, **data)` takes every event."""

    def __init__(self, run: str, phase: str, emit: Emit) -> None:
        self.run_uri, self.phase, self.emit = run, phase, emit
        self._handles: dict[str, Any] = {}
        self._tasks: Sequence[Task] = ()
        self._roles: dict[str, Role] = {}
        self._under_way: set[str] = set()

    async def run_plan(self, tasks: Sequence[Task], roles: dict[str, Role]) -> dict[str, Any]:
        """Return task id -> report. Raises `ConfigError` for a plan that cannot run, and what a failed task raised."""
        order = check_plan(tasks, roles)
        self._tasks, self._roles = tasks, roles
        by_id = {task.id: task for task in tasks}
        waiting = list[Task]()
        running = dict[asyncio.Task[Any], Task]()
        reports = dict[str, Any]()
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
        handle = self._handle(task.agent)
        self.emit("task_started", phase=self.phase, task=task.id, agent=task.agent)
        watcher = asyncio.create_task(self._watch(handle, task))
        try:
            report = await handle.run.remote(task)
        except RayError as error:
            raise self._failed(task, error) from error
        finally:
            watcher.cancel()
        self.emit("task_finished", phase=self.phase, task=task.id, agent=task.agent)
        return report

    async def _watch(self, handle: Any, task: Task) -> None:
        """Emit the agent's progress whenever there is some."""
        beats = -1
        while True:
            progress: Progress = await handle.progress.remote()
            if task.id not in self._under_way:
                self._under_way.add(task.id)
                self._start_ahead()
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
            await asyncio.sleep(POLL_SECONDS)

    def _handle(self, agent: str) -> Any:
        """Return an agent's handle, starting it where it is not there."""
        if agent not in self._handles:
            role = self._roles[agent]
            self._handles[agent] = spawn(role.agent, self.run_uri, self.phase, agent, cpus=role.cpus, gpus=role.gpus)
        return self._handles[agent]

    def _start_ahead(self) -> None:
        """Start the agents whose tasks wait only for tasks that are under way or done."""
        for task in self._tasks:
            if task.id not in self._under_way and self._under_way.issuperset(task.after):
                self._handle(task.agent)

    def _failed(self, task: Task, error: RayError) -> ForgeError:
        """Journal a task's failure and return what stops the run; recovery strategies belong here."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        self.emit("task_failed", phase=self.phase, task=task.id, agent=task.agent, error=str(cause))
        if isinstance(cause, ForgeError):
            return type(cause)(f"{task.id}: {cause}")
        return ForgeError(f"{task.id}: {type(cause).__name__}: {cause}")

    def _stop_if_idle(self, agent: str, left: Sequence[Task]) -> None:
        if agent in self._handles and not any(task.agent == agent for task in left):
            ray.kill(self._handles.pop(agent))


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
