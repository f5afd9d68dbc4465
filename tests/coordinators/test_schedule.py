"""Tasks start in an allowed order, fairly shared and the same each time, whatever the order in which they end."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent import Task
from coordinators.schedule import Repeat, Scheduler, SchedulingSettings, awaited, check_plan
from phases.errors import ConfigError


@dataclass
class World:
    """Performs tasks that end when it is told so, and keeps a history of (what, task); `now` is its time."""

    now: float = 0.0
    events: list[tuple[str, str]] = field(default_factory=list)
    running: dict[str, asyncio.Future[str]] = field(default_factory=dict)

    async def perform(self, task: Task) -> str:
        self.events.append(("start", task.id))
        self.running[task.id] = asyncio.get_running_loop().create_future()
        try:
            return await self.running[task.id]
        except asyncio.CancelledError:
            self.events.append(("cancel", task.id))
            raise
        finally:
            self.events.append(("end", task.id))
            del self.running[task.id]

    async def go_on(self) -> None:
        for _ in range(6):  # callbacks, dispatch, first steps of new tasks
            await asyncio.sleep(0)

    @property
    def started(self) -> list[str]:
        return [task for what, task in self.events if what == "start"]


def play(
    plans: Sequence[list[Task]],
    choices: Callable[[int], int],
    in_flight: int = 64,
    weights: Sequence[float] = (),
    seconds: Callable[[str], float] = lambda _: 1.0,
) -> tuple[World, list[dict[str, str]]]:
    """Run plans side by side, ending one of n running tasks at a time, which takes `seconds(id)`: `choices(n)`."""

    async def go() -> tuple[World, list[dict[str, str]]]:
        world = World()
        scheduler = Scheduler(SchedulingSettings(in_flight=in_flight), clock=lambda: world.now)
        shares = weights or [1.0] * len(plans)
        runs = [
            asyncio.create_task(scheduler.run(plan, world.perform, weight=weight))
            for plan, weight in zip(plans, shares, strict=True)
        ]
        await world.go_on()
        while world.running:
            name = list(world.running)[choices(len(world.running))]
            world.now += seconds(name)
            world.running[name].set_result(name.upper())
            await world.go_on()
        return world, await asyncio.gather(*runs)

    return asyncio.run(asyncio.wait_for(go(), 20))


@st.composite
def plans(draw: st.DrawFn, prefix: str = "", most: int = 12) -> list[Task]:
    """A plan whose tasks wait for earlier ones of the list; stages do not decrease along it."""
    tasks = list[Task]()
    stage = 0
    for number in range(draw(st.integers(0, most))):
        stage += draw(st.sampled_from([0, 0, 0, 1, 3]))
        names = [task.id for task in tasks]
        earlier = draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
        cut = draw(st.integers(0, len(earlier)))
        tasks.append(
            Task(
                f"{prefix}t{number}",
                draw(st.sampled_from(["a", "b", "c"])),
                "work",
                after=tuple(earlier[:cut]),
                inputs={f"x{position}": name for position, name in enumerate(earlier[cut:])},
                stage=stage,
                priority=draw(st.integers(-1, 1)),
            )
        )
    return list(draw(st.permutations(tasks)))


several = st.integers(1, 3).flatmap(lambda count: st.tuples(*(plans(prefix=f"{number}-") for number in range(count))))


@settings(max_examples=150, deadline=None)
@given(several, st.integers(1, 4), st.data())
def test_every_start_is_allowed_and_every_task_runs_once(
    plans: tuple[list[Task], ...], in_flight: int, data: st.DataObject
) -> None:
    world, outcomes = play(plans, lambda count: data.draw(st.integers(0, count - 1)), in_flight)
    tasks = {task.id: task for plan in plans for task in plan}
    waits = {name: names for plan in plans for name, names in awaited(plan).items()}
    done, running = set[str](), set[str]()
    for what, name in world.events:
        if what == "end":
            running.discard(name)
            done.add(name)
            continue
        task = tasks[name]
        assert waits[name] <= done
        assert {*task.after, *task.inputs.values()} <= done
        plan = next(plan for plan in plans if task in plan)
        assert {other.id for other in plan if other.stage < task.stage} <= done  # the barrier
        assert task.agent not in {tasks[other].agent for other in running}
        running.add(name)
        assert len(running) <= in_flight
    assert Counter(world.started) == Counter(list(tasks))
    assert outcomes == [{task.id: task.id.upper() for task in plan} for plan in plans]


@settings(max_examples=60, deadline=None)
@given(several, st.integers(1, 4), st.integers(0, 1000))
def test_the_same_order_of_ends_gives_the_same_order_of_starts(
    plans: tuple[list[Task], ...], in_flight: int, seed: int
) -> None:
    first, second = (play(plans, random.Random(seed).randrange, in_flight)[0].events for _ in range(2))
    assert first == second


@settings(max_examples=60, deadline=None)
@given(several, st.integers(1, 4), st.data())
def test_no_agent_is_idle_that_could_work(plans: tuple[list[Task], ...], in_flight: int, data: st.DataObject) -> None:
    """Whenever a task ends, all that can start has started, up to the bound."""
    tasks = {task.id: task for plan in plans for task in plan}
    waits = {name: names for plan in plans for name, names in awaited(plan).items()}
    seen = list[tuple[set[str], set[str]]]()  # running and done, whenever one is about to end
    done, running = set[str](), set[str]()
    world, _ = play(plans, lambda count: data.draw(st.integers(0, count - 1)), in_flight)
    for what, name in world.events:
        if what == "start":
            running.add(name)
        else:
            seen.append((set(running), set(done)))
            running.discard(name)
            done.add(name)
    for running, done in seen:
        busy = {tasks[name].agent for name in running}
        could = [
            name for name in tasks.keys() - running - done if waits[name] <= done and tasks[name].agent not in busy
        ]
        assert not could or len(running) == in_flight


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([0.1, 1.0, 7.0])),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from(["agent", "places"]),
)
def test_backlogged_plans_get_their_shares_of_time(plans: list[tuple[int, float, float]], shared: str) -> None:
    """At one agent, or at one place in flight for agents of their own, with tasks of l seconds each.

    |n_a l_a / w_a - n_b l_b / w_b| <= l_a / w_a + l_b / w_b.
    """
    tasks = [
        [Task(f"{p}-{n}", "agent" if shared == "agent" else f"agent {p}", "work") for n in range(count)]
        for p, (count, _, _) in enumerate(plans)
    ]
    weights = [weight for _, weight, _ in plans]
    each = [length / weight for _, weight, length in plans]  # what a task of a plan counts
    world, _ = play(
        tasks, lambda count: 0, 64 if shared == "agent" else 1, weights, lambda name: plans[int(name.split("-")[0])][2]
    )
    counts = [0] * len(plans)
    for name in world.started:
        counts[int(name.split("-")[0])] += 1
        backlogged = [p for p, (count, _, _) in enumerate(plans) if counts[p] < count]
        for a in backlogged:
            for b in backlogged:
                assert abs(counts[a] * each[a] - counts[b] * each[b]) <= each[a] + each[b] + 1e-9


def test_a_late_plan_neither_starves_nor_makes_up_for_what_it_missed() -> None:
    async def go() -> list[str]:
        world = World()
        scheduler = Scheduler(SchedulingSettings(), clock=lambda: world.now)
        runs = list[asyncio.Task[dict[str, str]]]()
        for model, at in (("big", 0), ("small", 10)):
            plan = [Task(f"{model} {number}", "agent", "work") for number in range(30 if model == "big" else 5)]
            runs.append(asyncio.create_task(scheduler.run(plan, world.perform)))
            await world.go_on()
            while world.running and len(world.started) < (at + 10 if model == "big" else 99):
                world.now += 1
                world.running[next(iter(world.running))].set_result("")
                await world.go_on()
        await asyncio.gather(*runs)
        return [name.split()[0] for name in world.started]

    order = asyncio.run(asyncio.wait_for(go(), 20))
    assert order[:10] == ["big"] * 10
    assert order[10:20] == ["small", "big"] * 5 or order[10:20] == ["big", "small"] * 5


def test_higher_priority_first_then_the_order_of_the_plan() -> None:
    tasks = [Task(name, "one", "work", priority=priority) for name, priority in zip("abcd", (0, 1, 0, 1), strict=True)]
    assert play([tasks], lambda count: 0)[0].started == ["b", "d", "a", "c"]


def test_where_places_are_short_a_plan_gives_them_to_its_higher_priority() -> None:
    tasks = [Task(f"{n}", f"agent {n}", "work", priority=n) for n in range(4)]
    assert play([tasks], lambda count: 0, in_flight=2)[0].started == ["3", "2", "1", "0"]


def test_what_is_lost_is_made_again_once_before_what_needs_it() -> None:
    """`a` is done again for two tasks that found its outcome gone; `c` waits for neither."""
    tasks = [
        Task("a", "one", "work"),
        Task("b", "two", "work", inputs={"x": "a"}),
        Task("b2", "three", "work", inputs={"x": "a"}),
        Task("c", "four", "work", after=("b", "b2")),
    ]
    started = list[str]()

    async def perform(task: Task) -> int:
        started.append(task.id)
        await asyncio.sleep(0)
        if task.id in ("b", "b2") and started.count(task.id) == 1:
            raise Repeat(["a"])
        return started.count(task.id)

    outcomes = asyncio.run(Scheduler().run(tasks, perform))
    assert started == ["a", "b", "b2", "a", "b", "b2", "c"]
    assert outcomes == {"a": 2, "b": 2, "b2": 2, "c": 1}


def test_a_failure_stops_its_own_plan_alone() -> None:
    async def go() -> World:
        world, scheduler = World(), Scheduler()
        ours = [Task("fails", "one", "work"), Task("beside", "two", "work"), Task("later", "one", "work")]
        theirs = [Task("other", "one", "work"), Task("other too", "three", "work")]
        runs = [asyncio.create_task(scheduler.run(plan, world.perform)) for plan in (ours, theirs)]
        await world.go_on()
        world.running["fails"].set_exception(ZeroDivisionError("oh"))
        with pytest.raises(ZeroDivisionError, match="oh"):
            await runs[0]
        await world.go_on()
        assert set(world.running) == {"other", "other too"}
        for future in list(world.running.values()):
            future.set_result("")
        await runs[1]
        return world

    world = asyncio.run(asyncio.wait_for(go(), 20))
    assert ("cancel", "beside") in world.events
    assert "later" not in world.started


def test_a_cancelled_run_has_cancelled_and_awaited_what_was_under_way() -> None:
    async def go() -> World:
        before = asyncio.all_tasks()
        world, scheduler = World(), Scheduler()
        plan = [Task("a", "one", "work"), Task("b", "two", "work"), Task("c", "one", "work")]
        run = asyncio.create_task(scheduler.run(plan, world.perform))
        await world.go_on()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert not world.running
        assert asyncio.all_tasks() == before
        again = asyncio.create_task(scheduler.run([Task("d", "one", "work")], world.perform))
        await world.go_on()
        world.running["d"].set_result("done")
        assert await again == {"d": "done"}
        return world

    assert asyncio.run(asyncio.wait_for(go(), 20)).started == ["a", "b", "d"]


class Hands:
    """An agent's class; checking a plan only looks at it."""

    def work(self, task: str, x: int = 0, y: int = 0) -> None: ...

    def need(self, task: str, x: int) -> None: ...


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            [Task("a", "one", "work", after=("b",)), Task("b", "one", "work", after=("a",))],
            "a -> b -> a.*cycle|b -> a -> b",
        ),
        ([Task("a", "one", "work", inputs={"x": "b"}), Task("b", "one", "work", after=("a",))], "cycle"),
        ([Task("a", "one", "work", after=("b",)), Task("b", "one", "work", stage=1)], "cycle"),
        ([Task("a", "one", "work", after=("nothing",))], "'a'.*waits for unknown tasks .*nothing"),
        ([Task("a", "one", "work", inputs={"x": "nothing"})], "waits for unknown tasks .*nothing"),
        ([Task("a", "two", "work")], "'a'.*has no agent two"),
        ([Task("a", "one", "work"), Task("a", "one", "work")], "2 tasks have this id"),
        ([Task("a", "one", "sing")], "Hands cannot sing"),
        ([Task("a", "one", "need")], "missing a required argument: 'x'"),
        ([Task("a", "one", "need", {"x": 1}, fallback={"y": 1})], "Hands.need"),
        ([Task("a", "one", "work", {"z": 1})], "unexpected keyword argument 'z'"),
        ([Task("a", "one", "work"), Task("b", "one", "work", {"x": 1}, inputs={"x": "a"})], "arguments and inputs"),
    ],
)
def test_impossible_plans_are_refused_by_name(tasks: list[Task], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_plan(tasks, {"one": Hands})


@given(plans())
def test_possible_plans_are_not_refused(tasks: list[Task]) -> None:
    class Any:
        def work(self, task: str, x0: int = 0, x1: int = 0, x2: int = 0) -> None: ...

    check_plan(tasks, dict.fromkeys("abc", Any))
