"""Which task starts next: dependency graphs of tasks over agents that several models may share.

An agent has one task at a time, and a bounded number of tasks is under way. Of a model's ready tasks those of higher
priority start first, then those that come first in its plan; between models, agents and places are shared by turns, so
that a large plan starves no small one, nor one of long tasks one of short ones. Given when tasks end, the order in
which they start is determined.
Nothing is run here and nothing is known of how: whoever calls `Scheduler.run` says what performing a task means.
"""

import asyncio
import inspect
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any, Generic, TypeVar

from pydantic import Field

from actors.agent import Task
from phases.errors import ConfigError
from phases.settings import Settings
from recovery.circuit_breaker import BreakerSettings

R = TypeVar("R")


class SchedulingSettings(Settings):
    """How the tasks of a phase share its agents, and when an agent is left alone for a while."""

    in_flight: int = Field(default=64, ge=1, description="tasks under way at a time, over all models of a phase")
    make_way_seconds: float = Field(
        default=10.0, gt=0, description="an agent that waits longer for CPUs or GPUs takes those of idle ones"
    )
    breaker: BreakerSettings = Field(
        default=BreakerSettings(), description="per agent; three restarts of one task do not open it"
    )


class Repeat(Exception):
    """Raised while a task is performed: what `tasks` have made is lost; do them again, and then this one."""

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__(*tasks)
        self.tasks = frozenset(tasks)


class Turns:
    """Whose turn it is at what several share: start-time fair queueing (Goyal et al. 1996) of the time that tasks take.

    A task counts as long as those before it took on average, and once it has ended, as long as it took. Of what serves
    one at a time, two of weights a and b that both have something to start get times that, each divided by its weight,
    differ by at most the sum of their longest tasks, so divided. Who had nothing to start has saved nothing up.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[int, float] = {}
        self._count, self._mean = 0, 1.0

    def start(self, who: int) -> float:
        """Return the virtual time at which `who` may start; the least is next."""
        return max(self._now, self._ends.get(who, 0.0))

    def take(self, who: int, weight: float) -> float:
        """Note that `who` starts a task, and return the seconds that it counts for the time being."""
        self._now = self.start(who)
        self._ends[who] = self._now + self._mean / weight
        return self._mean

    def settle(self, who: int, weight: float, counted: float, seconds: float) -> None:
        """Note that a task that has counted for some seconds took others."""
        if who in self._ends:
            self._ends[who] += (seconds - counted) / weight
        self._count += 1
        self._mean += (seconds - self._mean) / self._count

    def forget(self, who: int) -> None:
        """Forget one that is gone."""
        self._ends.pop(who, None)


class _Plan(Generic[R]):
    """One model's tasks: which are ready, and what came out of those that are done."""

    def __init__(
        self, number: int, tasks: Sequence[Task], perform: Callable[[Task], Coroutine[Any, Any, R]], weight: float
    ) -> None:
        self.number, self.perform, self.weight = number, perform, weight
        self.by_id = {task.id: task for task in tasks}
        self.ready: dict[str, list[tuple[int, int, str]]] = {}  # agent -> heap of (-priority, position, task)
        self.running = set[asyncio.Task[R]]()
        self.outcomes: dict[str, R] = {}
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._position = {task.id: position for position, task in enumerate(tasks)}
        self._graph = _sorter(awaited(tasks))
        self._repeated = set[str]()
        self._held: list[tuple[str, set[str]]] = []  # a task, and those that it waits for to be repeated
        self._advance()

    def take(self, agent: str) -> Task:
        """Return an agent's next task, which is then no longer ready."""
        _, _, name = heappop(self.ready[agent])
        if not self.ready[agent]:
            del self.ready[agent]
        return self.by_id[name]

    def settle(self, task: Task, ended: asyncio.Task[R]) -> None:
        """Note how a task has ended."""
        if ended.cancelled():
            self.over.cancel()
        elif isinstance(error := ended.exception(), Repeat):
            self._repeat(task.id, error.tasks)
        elif error is not None:
            self.over.set_exception(error)
        else:
            self._done(task.id, ended.result())

    def _repeat(self, name: str, lost: frozenset[str]) -> None:
        self._held.append((name, set(lost)))
        for task in lost - self._repeated:
            self._push(task)
        self._repeated |= lost

    def _done(self, name: str, outcome: R) -> None:
        self.outcomes[name] = outcome
        if name not in self._repeated:
            self._graph.done(name)
            return self._advance()
        self._repeated.remove(name)
        for held, lost in self._held:
            lost.discard(name)
            if not lost:
                self._push(held)
        self._held = [(held, lost) for held, lost in self._held if lost]

    def _advance(self) -> None:
        for name in self._graph.get_ready():
            self._push(name)
        if not self._graph.is_active():
            self.over.set_result(None)

    def _push(self, name: str) -> None:
        task = self.by_id[name]
        heappush(self.ready.setdefault(task.agent, []), (-task.priority, self._position[name], name))


class Scheduler:
    """Runs plans side by side; tasks that name the same agent share it."""

    def __init__(
        self,
        settings: SchedulingSettings = SchedulingSettings(),  # noqa: B008 - immutable
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.clock = settings, clock
        self._plans: list[_Plan[Any]] = []
        self._count = 0
        self._busy = set[str]()
        self._agents = defaultdict[str, Turns](Turns)
        self._places = Turns()

    async def run(
        self, tasks: Sequence[Task], perform: Callable[[Task], Coroutine[Any, Any, R]], *, weight: float = 1.0
    ) -> dict[str, R]:
        """Perform the tasks of a checked plan and return task id -> outcome. `weight` is the plan's share.

        Raises what `perform` raises first. Then, and where it is cancelled, tasks under way are cancelled and awaited.
        """
        plan = _Plan(self._count, tasks, perform, weight)
        self._count += 1
        self._plans.append(plan)
        try:
            self._dispatch()
            await plan.over
            return plan.outcomes
        finally:
            self._plans.remove(plan)
            for turns in (self._places, *self._agents.values()):
                turns.forget(plan.number)
            for unfinished in plan.running:
                unfinished.cancel()
            await asyncio.gather(*plan.running, return_exceptions=True)

    def _dispatch(self) -> None:
        while len(self._busy) < self.settings.in_flight and (offer := self._next()):
            plan, agent = offer
            self._start(plan, plan.take(agent))

    def _next(self) -> tuple[_Plan[Any], str] | None:
        """Return whose task starts next at which agent: each free agent's turn is one plan's, and so is the place's."""
        offers: dict[str, _Plan[Any]] = {}
        for plan in self._plans:
            for agent in () if plan.over.done() else plan.ready:
                turns = self._agents[agent]
                other = offers.get(agent)
                if agent not in self._busy and (other is None or turns.start(plan.number) < turns.start(other.number)):
                    offers[agent] = plan
        if not offers:
            return None
        agent, plan = min(
            offers.items(),
            key=lambda offer: (self._places.start(offer[1].number), offer[1].number, offer[1].ready[offer[0]][0]),
        )
        return plan, agent

    def _start(self, plan: _Plan[Any], task: Task) -> None:
        self._busy.add(task.agent)
        start, shared = self.clock(), (self._agents[task.agent], self._places)
        counted = [turns.take(plan.number, plan.weight) for turns in shared]
        running = asyncio.create_task(plan.perform(task))
        plan.running.add(running)

        def ended(future: asyncio.Task[Any]) -> None:
            plan.running.discard(future)
            self._busy.discard(task.agent)
            for turns, seconds in zip(shared, counted, strict=True):
                turns.settle(plan.number, plan.weight, seconds, self.clock() - start)
            if not plan.over.done():
                plan.settle(task, future)
            self._dispatch()

        running.add_done_callback(ended)


def awaited(tasks: Sequence[Task]) -> dict[str, frozenset[str]]:
    """Return task id -> what it waits for: tasks in `after` and `inputs`, and all those of the stage before its own."""
    stages = {stage: frozenset(task.id for task in tasks if task.stage == stage) for stage in {t.stage for t in tasks}}
    numbers = sorted(stages)
    before = {later: stages[earlier] for earlier, later in pairwise(numbers)}
    return {
        task.id: frozenset(task.after) | frozenset(task.inputs.values()) | before.get(task.stage, frozenset())
        for task in tasks
    }


def check_plan(tasks: Sequence[Task], agents: Mapping[str, type]) -> None:
    """Raise `ConfigError` naming a cycle, a task twice, or a task, agent, method or argument that does not exist."""
    count = Counter(task.id for task in tasks)
    for task in tasks:
        if count[task.id] > 1:
            raise ConfigError.of("plan", task.id, f"{count[task.id]} tasks have this id", "give each its own")
        if missing := [name for name in (*task.after, *task.inputs.values()) if name not in count]:
            raise ConfigError.of("plan", task.id, f"waits for unknown tasks {missing}", "add them to the plan")
        if task.agent not in agents:
            raise ConfigError.of("plan", task.id, f"has no agent {task.agent}", f"known are {', '.join(agents)}")
        _check_call(task, agents[task.agent])
    _sorter(awaited(tasks))


def _check_call(task: Task, agent: type) -> None:
    """Raise `ConfigError` where an agent's method cannot be called with a task's arguments and inputs."""
    method = getattr(agent, task.method, None)
    if method is None:
        raise ConfigError.of("plan", task.id, f"{agent.__name__} cannot {task.method}", "name one of its methods")
    for arguments in (task.arguments, task.fallback or task.arguments):
        if twice := sorted(arguments.keys() & task.inputs.keys()):
            raise ConfigError.of("plan", task.id, f"{twice} are arguments and inputs", "give each once")
        try:
            inspect.signature(method).bind(None, task.id, **arguments, **task.inputs)
        except TypeError as error:
            call = f"{agent.__name__}.{task.method}"
            raise ConfigError.of("plan", task.id, f"{call}: {error}", "correct its arguments or inputs") from error


def _sorter(waits: Mapping[str, Iterable[str]]) -> "TopologicalSorter[str]":
    order = TopologicalSorter(waits)
    try:
        order.prepare()
    except CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise ConfigError.of("plan", cycle, "is a cycle", "remove one dependency, or correct a stage") from error
    return order
