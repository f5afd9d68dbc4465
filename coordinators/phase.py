"""Carrying out the tasks of a phase: agents, started and stopped as the plans need them, and recovery.

`schedule.py` says which task starts next. An agent is started as soon as all that its task waits for is under way, so
that its imports cost no time, and not before, so that it cannot hold what those need; it is stopped when nothing is
left for it, which frees its CPUs or GPUs. Reports that other tasks take as inputs stay in the object store.

A task that fails is classified and recovered by the policy of `recovery/strategies.py`; each decision is journalled
before it is carried out. A supervisor keeps the agents alive: one that dies, freezes or is stuck is replaced at once,
and its task's failure is one like others. An agent that fails again and again is left alone for a while by its circuit
breaker. Phases write no recovery code: they declare what a task's fallback is and whether it is optional.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ObjectLostError, RayError, RayTaskError
from ray.util.metrics import Gauge

from actors.agent import Agent, Attempt, Task
from actors.supervised import Stage, ending
from coordinators.schedule import Repeat, Scheduler, SchedulingSettings, awaited, check_plan
from phases.errors import ConfigError, ForgeError
from recovery.children import ChildDownError, ChildGivenUpError, DeadlineError, Loss
from recovery.circuit_breaker import Breakers, BreakerState, CircuitBreaker, Transition
from recovery.classify import Classifier
from recovery.commits import Commits, FencedError
from recovery.faults import hook
from recovery.strategies import Decision, Failure, History, RecoverySettings, decide
from recovery.supervision import SupervisionSettings
from recovery.supervisor import Supervisor
from recovery.taxonomy import ErrorClass, Strategy

Emit = Callable[..., None]
_CLASSIFIER = Classifier()
_AGAINST_AGENT = (ErrorClass.TRANSIENT, ErrorClass.CRASH, ErrorClass.RESOURCE)  # others are the task's own fault


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
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    history: History = field(default_factory=History)


@dataclass(frozen=True)
class Missing:
    """The report of a task that the phase went on without."""

    task: str
    reason: str


class PhaseCoordinator:
    """Runs the plans of one phase: one, or those of several models side by side over the same agents."""

    def __init__(self, context: RunContext, phase: str) -> None:
        self.context, self.phase, self.emit = context, phase, context.emit
        self.commits = Commits(context.run)
        self.scheduler = Scheduler(context.scheduling)
        self.breakers = Breakers(self._breaker)
        meaning = ", ".join(f"{number} {state}" for number, state in enumerate(BreakerState))
        self._gauge = Gauge("forge_breaker", f"an agent's circuit breaker: {meaning}", tag_keys=("phase", "agent"))
        self._agents: Supervisor  # while there are plans
        self._stage: Stage
        self._plans = 0
        self._roles: dict[str, Role] = {}
        self._left: dict[str, Task] = {}  # of all plans, what is not done
        self._awaited: dict[str, frozenset[str]] = {}
        self._under_way: set[str] = set()  # begun or done
        self._busy: set[str] = set()
        self._referred: set[str] = set()  # tasks whose reports others take
        self._reports: dict[str, Any] = {}

    async def run_plan(
        self, tasks: Sequence[Task], roles: dict[str, Role], *, model: str = "", weight: float = 1.0
    ) -> dict[str, Any]:
        """Return task id -> report: `Missing` for one that was isolated, a reference for one that others take as input.

        Plans that run at the same time name their `model`, which its tasks are then named after everywhere else;
        `weight` is its share of the agents. Cancelled, it stops the agents that work on it. Raises `ConfigError` for a
        plan that cannot run, and what a task raised that could not be recovered.
        """
        check_plan(tasks, {name: role.agent for name, role in roles.items()})
        plan = [_named(task, model) for task in tasks]
        self._add(plan, roles)
        try:
            async with self._supervised():
                await self.scheduler.run(plan, self._perform, weight=weight)
            return {task.id: self._reports[named.id] for task, named in zip(tasks, plan, strict=True)}
        finally:
            for task in plan:
                self._left.pop(task.id, None)
                self._awaited.pop(task.id, None)
                self._reports.pop(task.id, None)
            names = {task.id for task in plan}
            self._under_way -= names
            self._referred -= names
            if self._plans:
                await self._stop_idle()

    @asynccontextmanager
    async def _supervised(self) -> AsyncIterator[None]:
        """Have a supervisor of agents, which the first plan brings and the last one stops."""
        if not self._plans:
            self._stage = Stage(self.context.run, self.phase, self.context.supervision)
            self._agents = self._stage.supervisor(f"{self.phase} agents", emit=self._on_agent)
            await self._agents.start()
        self._plans += 1
        try:
            yield
        finally:
            self._plans -= 1
            if not self._plans:
                with self._stage:
                    await self._agents.stop()

    def _on_agent(self, kind: str, **data: Any) -> None:
        """Tell of an agent that was given up; of a death, the failure of its task tells."""
        if kind == "child_down" and data["loss"] in (Loss.HUNG, Loss.STUCK):
            self.emit("agent_given_up", phase=self.phase, agent=data["child"], reason=data["cause"])

    def _add(self, plan: Sequence[Task], roles: dict[str, Role]) -> None:
        """Take a plan among those that run. Raises `ConfigError` where it does not go together with them."""
        for task in plan:
            if task.id in self._awaited:
                raise ConfigError.of("plan", task.id, "runs already", "give each plan a model of its own")
        used = {task.agent for task in self._left.values()}
        for name, role in roles.items():
            if name in used and self._roles[name] != role:
                raise ConfigError.of("agent", name, "has another role in a plan that runs", "give it another name")
        self._roles |= roles
        self._left |= {task.id: task for task in plan}
        self._awaited |= awaited(plan)
        self._referred |= {name for task in plan for name in task.inputs.values()}

    async def _perform(self, task: Task) -> None:
        self._left[task.id] = task
        self._reports[task.id] = await self._run_task(task)
        del self._left[task.id]
        await self._stop_idle()

    async def _run_task(self, task: Task) -> Any:
        """Return a task's report, whatever it takes within the policy's budgets."""
        needed = (*task.after, *task.inputs.values())
        if task.optional and any(isinstance(self._reports[name], Missing) for name in needed):
            return Missing(task.id, "what it works on is missing")
        given, factor = task, 1.0
        while True:
            started = time.monotonic()
            try:
                return await self._guarded(given, factor)
            except FencedError:
                raise  # somebody else does it now: nothing here is to be recovered, or told in the journal
            except (RayError, ForgeError, OSError) as error:
                cause, gone = await ending(error), isinstance(error, ChildDownError)
                decision = self._decide(task, cause, time.monotonic() - started)
                if decision.strategy is Strategy.ESCALATE:
                    raise self._stopped(task, cause, decision) from error
                if decision.strategy is Strategy.ISOLATE:
                    return Missing(task.id, _message(cause))
                lost = self._lost_inputs(task, cause)
            if decision.strategy in (Strategy.RESTART, Strategy.FALLBACK):
                await self._renew(task.agent, gone)
            await asyncio.sleep(decision.delay)
            if lost:
                raise Repeat(lost)
            given = replace(task, arguments=task.fallback) if decision.fallback and task.fallback else task
            factor = decision.learning_rate_factor

    async def _guarded(self, task: Task, learning_rate_factor: float) -> Any:
        """Attempt a task through its agent's breaker. Where that is open, what is required waits for the next probe."""
        breaker = self.breakers[task.agent]
        while not task.optional and 0 < (seconds := breaker.retry_after()) < math.inf:
            await asyncio.sleep(seconds)
        return await breaker.call(self._attempt, task, learning_rate_factor)

    async def _attempt(self, task: Task, learning_rate_factor: float) -> Any:
        hook("attempt", self.phase, task.id)
        # in a thread: others need not wait for the disk
        epoch = await asyncio.to_thread(self.commits.begin, f"{self.phase}/{task.id}")
        self._busy.add(task.agent)
        follower: asyncio.Task[None] | None = None
        try:
            await self._ready(task.agent)
            self.emit("task_started", phase=self.phase, task=task.id, agent=task.agent)
            self._under_way.add(task.id)
            self._start_ahead()
            follower = asyncio.create_task(self._follow(task))
            given = (Attempt(epoch, learning_rate_factor), *(self._input(name) for name in task.inputs.values()))
            limit = math.inf if task.timeout is None else task.timeout
            report = await self._agents.call(task.agent, "deliver", task, *given, timeout=limit)
            if task.id not in self._referred:
                report = await report
        except (asyncio.CancelledError, DeadlineError, ChildGivenUpError):
            await self._stop([task.agent])  # giving up the call would not stop the work
            raise
        finally:
            self._busy.discard(task.agent)
            if follower is not None:
                follower.cancel()
        hook("attempted", self.phase, task.id)
        self.emit("task_finished", phase=self.phase, task=task.id, agent=task.agent)
        return report

    async def _ready(self, agent: str) -> None:
        """Start an agent where it is not there, and wait until it has its resources and answers."""
        self._start(agent)
        answer = asyncio.ensure_future(self._agents.call(agent, "progress", timeout=math.inf))
        try:
            while not (await asyncio.wait([answer], timeout=self.context.scheduling.make_way_seconds))[0]:
                await self._make_way()
            await answer
        finally:
            answer.cancel()

    async def _follow(self, task: Task) -> None:
        """Emit the agent's progress whenever there is some. What is wrong with it, the supervisor notices."""
        settings, beats = self.context.supervision, -1
        while True:
            await asyncio.sleep(settings.poll_seconds)
            with suppress(RayError, ForgeError):
                progress = await self._agents.call(task.agent, "progress", timeout=settings.hang_seconds)
                if progress.beats != beats and progress.task == task.id and progress.steps:
                    beats, of = progress.beats, {"phase": self.phase, "task": task.id, "agent": task.agent}
                    done = {"step": progress.step, "steps": progress.steps, "metrics": progress.metrics}
                    self.emit("progress", **of, **done)

    def _start(self, agent: str) -> None:
        """Start an agent where it is not there."""
        if agent not in self._agents.names:
            role, spares = self._roles[agent], self.context.supervision.spares
            child = self._stage.child(
                agent, role.agent, cpus=role.cpus, gpus=role.gpus, significant=False, spares=spares
            )
            self._agents.add(child)

    def _start_ahead(self) -> None:
        """Start the agents whose tasks wait only for tasks that are under way or done."""
        for task in self._left.values():
            if task.id not in self._under_way and self._under_way.issuperset(self._awaited[task.id]):
                self._start(task.agent)

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
        cause = cause_of(error)
        kind = type(cause) if isinstance(cause, ForgeError) else ForgeError
        return kind(f"{task.id}: {message}\n{decision.reason}; {decision.advice}")

    def _lost_inputs(self, task: Task, error: Exception) -> set[str]:
        """Return the tasks whose reports a task was to take and could not, since no node has them any more."""
        cause = cause_of(error)
        if not isinstance(cause, ObjectLostError):
            return set()
        inputs = {name: self._reports[name] for name in task.inputs.values()}
        return {
            name
            for name, report in inputs.items()
            if isinstance(report, ray.ObjectRef) and report.hex() == cause.object_ref_hex
        }

    def _input(self, name: str) -> Any:
        """Return what a task is given for another's report: a reference to it, None where that was isolated."""
        report = self._reports[name]
        return None if isinstance(report, Missing) else report

    async def _renew(self, agent: str, gone: bool) -> None:
        """Give an agent that has failed a new process, unless its own is gone, and stop those that were started ahead.

        The latter would take the resources that its successor needs, and wait for its task for ever.
        """
        self._under_way -= {task.id for task in self._left.values() if task.agent == agent}
        await self._make_way()
        if not gone and agent in self._agents.names:
            await self._agents.restart(agent)

    async def _make_way(self) -> None:
        """Stop the agents that hold CPUs or GPUs and do nothing with them; their next tasks start them again."""
        idle = self._agents.names - self._busy
        await self._stop([name for name in idle if self._roles[name].cpus or self._roles[name].gpus])

    async def _stop_idle(self) -> None:
        """Stop the agents for which nothing is left in any plan."""
        await self._stop(self._agents.names - {task.agent for task in self._left.values()})

    async def _stop(self, agents: Collection[str]) -> None:
        for agent in agents:
            if agent in self._agents.names:
                await self._agents.remove(agent)

    def _breaker(self, agent: str) -> CircuitBreaker:
        self._set_gauge(agent, BreakerState.CLOSED)
        return CircuitBreaker(
            agent,
            self.context.scheduling.breaker,
            counts=lambda error: _CLASSIFIER.classify(error) in _AGAINST_AGENT,
            on_change=self._breaker_changed,
        )

    def _breaker_changed(self, change: Transition) -> None:
        self._set_gauge(change.callee, change.after)
        states = {"before": str(change.before), "after": str(change.after)}
        self.emit("breaker", phase=self.phase, agent=change.callee, reason=change.reason, **states)

    def _set_gauge(self, agent: str, state: BreakerState) -> None:
        self._gauge.set(list(BreakerState).index(state), tags={"phase": self.phase, "agent": agent})


def _named(task: Task, model: str) -> Task:
    """Return a task of a model's plan with ids that no other model's has."""
    if not model:
        return task
    inputs = {argument: f"{model}/{name}" for argument, name in task.inputs.items()}
    return replace(task, id=f"{model}/{task.id}", after=tuple(f"{model}/{name}" for name in task.after), inputs=inputs)


def cause_of(error: Exception) -> BaseException:
    """Return what the work itself, or the constructor of an actor, raised where Ray has wrapped it."""
    if isinstance(error, ActorDiedError) and error.actor_init_failed:
        error = error.args[0]
    return error.cause if isinstance(error, RayTaskError) else error


def _message(error: Exception) -> str:
    cause = cause_of(error)
    return str(cause) if isinstance(cause, ForgeError) else f"{type(cause).__name__}: {cause}"
