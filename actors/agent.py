"""The base of all agents: a plain class that does one kind of work, and what makes it a named Ray actor.

An agent knows the run directory that it works in and nothing of who asks it. Its tasks may be given twice: a model that
is already committed is verified and taken. Progress is read from a concurrency group of its own, so that it answers
while the work goes on.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from phases import storage
from phases.probes import RunFiles
from recovery.commits import Commits
from recovery.faults import hook
from recovery.inputs import input_hash

NAMESPACE = "agent-forge"


@dataclass(frozen=True)
class Task:
    """One call of an agent's method. `after` are the ids of tasks that must be done before."""

    id: str
    agent: str
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)  # argument -> the task whose report it is, done before too
    stage: int = 0  # a barrier: it starts when all tasks of earlier stages are done
    priority: int = 0  # of those that are ready, higher ones start first
    timeout: float | None = None  # seconds; an agent that takes longer is killed, which is a passing failure
    fallback: dict[str, Any] | None = None  # arguments of a smaller or slower variant of the same task
    optional: bool = False  # whether the phase can go on without it
    resumes: bool = False  # whether it goes on from checkpoints of its own


@dataclass(frozen=True)
class Attempt:
    """One try at a task. Its commit counts only while no later attempt has begun."""

    epoch: int = 1
    learning_rate_factor: float = 1.0  # below 1 after rollbacks


@dataclass(frozen=True)
class Progress:
    """How far an agent is. `beats` grows with every sign of work, so that a stuck one can be told from a slow one."""

    task: str = ""
    step: int = 0
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    beats: int = 0


class Agent:
    """Subclasses have one synchronous method per kind of task; `run` calls it in a thread."""

    def __init__(self, run: str, phase: str, name: str) -> None:
        self.run_uri, self.phase, self.name = run, phase, name
        self.attempt = Attempt()
        self._commits = Commits(run)
        self._progress = Progress()
        self._started = time.monotonic()

    async def run(self, task: Task, attempt: Attempt = Attempt(), *inputs: Any) -> Any:
        """Do a task and return its report once it is committed. `inputs` are the values of `task.inputs`, in order.

        Raises what the work raises, and `FencedError` where another attempt has begun in the meantime.
        """
        self.attempt = attempt
        self.report(task.id, 0, 0, {})
        arguments = task.arguments | dict(zip(task.inputs, inputs, strict=True))
        worked_on = input_hash(arguments)
        report = await asyncio.to_thread(getattr(self, task.method), task.id, **arguments)
        hook("task.worked", self.phase, task.id)
        self._commits.commit(f"{self.phase}/{task.id}", attempt.epoch, self.name, worked_on)
        hook("task.committed", self.phase, task.id)
        return report

    async def deliver(self, task: Task, attempt: Attempt, *inputs: Any) -> tuple[Any, None]:
        """Return the report of `run` and a receipt, as two objects: who waits for the receipt fetches no report."""
        return await self.run(task, attempt, *inputs), None

    async def progress(self) -> Progress:
        """Return how far the current task is."""
        return self._progress

    async def health(self) -> dict[str, Any]:
        """Return the agent's name, its uptime in seconds and its progress."""
        return {"agent": self.name, "uptime": time.monotonic() - self._started, "progress": vars(self._progress)}

    def snapshot(self) -> dict[str, Any]:
        """Return what `restore` needs in a new incarnation; what is expensive is in storage, not in here."""
        return {"progress": vars(self._progress)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over from an earlier incarnation."""
        self._progress = Progress(**snapshot["progress"])

    def report(self, task: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Note progress; work calls this from its own thread."""
        hook("progress", self.phase, task, step)
        self._progress = Progress(task, step, steps, metrics, self._progress.beats + 1)

    def log_metrics(self, file: str, record: dict[str, Any]) -> None:
        """Append a record to a metrics file, in the run unless its path is absolute."""
        storage.append_line(RunFiles(self.run_uri).path(file), json.dumps(record))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self._progress.task} {self._progress.step})"


def start_named(actor: Any, *arguments: Any) -> Any:
    """Start an actor of `as_actor`, waiting for its name where an earlier incarnation is still dying.

    It blocks for up to 20 s: coroutines call it in a thread.
    """
    taken = retry_if_exception_type(ActorAlreadyExistsError)
    for attempt in Retrying(retry=taken, wait=wait_fixed(0.1), stop=stop_after_delay(20), reraise=True):
        with attempt:
            return actor.remote(*arguments)


def as_actor(cls: type, name: str, **options: Any) -> Any:
    """Return a class as a named Ray actor class without restarts; what it makes is untyped, as Ray's handles are."""
    remote: Any = ray.remote
    return remote(max_restarts=0, **options)(cls).options(name=name, namespace=NAMESPACE)


def flow_name(run: str) -> str:
    """Return the name of the actor that has the data flow of a run."""
    return f"{storage.folder_name(run)}/dataflow"


def with_health_group(agent: type[Agent]) -> type[Agent]:
    """Return a subclass whose `progress` and `health` run beside the work."""

    async def progress(self: Agent) -> Progress:
        return await agent.progress(self)

    async def health(self: Agent) -> dict[str, Any]:
        return await agent.health(self)

    async def deliver(self: Agent, task: Task, attempt: Attempt, *inputs: Any) -> tuple[Any, None]:
        return await agent.deliver(self, task, attempt, *inputs)

    members = {
        "deliver": ray.method(num_returns=2)(deliver),
        "progress": ray.method(concurrency_group="health")(progress),
        "health": ray.method(concurrency_group="health")(health),
        "__module__": agent.__module__,
    }
    return type(agent.__name__, (agent,), members)
