"""Supervision on children made of nothing: strategies, intensity, calls and spares."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from phases.errors import ConfigError
from recovery.children import (
    ChildDownError,
    ChildGivenUpError,
    ChildSpec,
    DeadlineError,
    Loss,
    RestartStrategy,
    SupervisorGaveUpError,
    UnstartableError,
    affected,
)
from recovery.classify import Classifier
from recovery.incarnation import Incarnation
from recovery.supervision import SupervisionSettings
from recovery.supervisor import Supervisor
from recovery.taxonomy import ErrorClass
from support.clock import Clock
from support.supervision import QUICK, World, settle

ONE, ALL, REST = RestartStrategy.ONE_FOR_ONE, RestartStrategy.ONE_FOR_ALL, RestartStrategy.REST_FOR_ONE


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


def test_who_is_restarted_with_a_failed_child() -> None:
    assert affected(ONE, ["a", "b", "c"], "b") == ["b"]
    assert affected(ALL, ["a", "b", "c"], "b") == ["a", "b", "c"]
    assert affected(REST, ["a", "b", "c"], "b") == ["b", "c"]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (ONE, ["start b"]),
        (REST, ["kill c", "start b", "start c"]),
        (ALL, ["kill c", "kill a", "start a", "start b", "start c"]),
    ],
)
def test_children_start_in_order_restart_by_strategy_and_stop_in_reverse(
    strategy: RestartStrategy, expected: list[str]
) -> None:
    async def scenario() -> None:
        world = World()
        supervisor = await Supervisor("s", world.children("abc"), strategy=strategy).start()
        assert world.news() == ["start a", "start b", "start c"]
        world.life("b").die()
        await settle()
        assert world.news() == expected
        await supervisor.stop()
        assert world.news() == ["kill c", "kill b", "kill a"]
        assert not world.living

    run(scenario())


def test_beyond_its_intensity_a_supervisor_stops_all_and_names_the_cause() -> None:
    async def scenario() -> None:
        world, clock = World(), Clock()
        supervisor = await Supervisor("s", world.children("abc"), settings=QUICK, clock=clock).start()
        for _ in range(4):  # spread over time, failures are no reason
            clock.now += 6
            world.life("a").die()
            await settle()
        clock.now += 11
        for _ in range(3):
            world.life("b").die()
            await settle()
        assert isinstance(await supervisor.death(), SupervisorGaveUpError)
        assert world.news()[-2:] == ["kill c", "kill a"]
        with pytest.raises(SupervisorGaveUpError, match=r"s: gave up after 2 restarts in 10 s; b died: EOFError: gone"):
            await supervisor.call("a", "number_of_life", timeout=1)

    run(scenario())


def test_a_supervisor_escalates_to_its_own() -> None:
    async def scenario() -> None:
        world = World()

        async def start(_: frozenset[str]) -> Incarnation:
            return await Supervisor("inner", world.children("ab"), settings=QUICK).start()

        outer = await Supervisor("outer", [ChildSpec("inner", start)], settings=QUICK).start()
        for deaths in range(1, 9):
            world.life("b").die()
            await settle()
            if deaths == 3:  # the inner one gave up, and was started anew with both of its children
                assert await outer.call("inner", "b.number_of_life", timeout=1) == 4
                assert await outer.call("inner", "a.number_of_life", timeout=1) == 2
        world.life("b").die()
        error = await outer.death()
        assert "inner: gave up after 2 restarts" in str(error)
        assert not world.living

    run(scenario())


def test_a_child_that_is_not_significant_is_given_up_alone() -> None:
    async def scenario() -> None:
        world = World()
        specs = [world.child("a"), world.child("b", significant=False), world.child("c")]
        supervisor = await Supervisor("s", specs, strategy=REST, settings=QUICK).start()
        for _ in range(3):
            world.life("b").die()
            await settle()
        with pytest.raises(ChildGivenUpError, match="b: given up after 2 restarts") as caught:
            await supervisor.call("b", "number_of_life", timeout=1)
        assert Classifier().classify(caught.value) is ErrorClass.CRASH
        assert await supervisor.call("a", "number_of_life", timeout=1) == 1
        assert await supervisor.call("c", "number_of_life", timeout=1) == 3
        await supervisor.stop()

    run(scenario())


def test_a_start_that_fails_counts_and_is_tried_again() -> None:
    async def scenario() -> None:
        world = World()
        world.refusals["b"] = 2
        await (await Supervisor("s", world.children("ab"), settings=QUICK).start()).stop()
        world.refusals["b"] = 3
        with pytest.raises(SupervisorGaveUpError, match="b did not start: OSError: no room"):
            await Supervisor("s", world.children("ab"), settings=QUICK).start()
        assert not world.living

    run(scenario())


def test_what_cannot_be_started_is_not_tried_again() -> None:
    starts = list[str]()

    async def start(_: frozenset[str]) -> Incarnation:
        starts.append("b")
        raise UnstartableError("b: no weights") from FileNotFoundError("weights.bin")

    async def scenario() -> None:
        world = World()
        with pytest.raises(SupervisorGaveUpError, match=r"s: gave up; b did not start: .*no weights"):
            await Supervisor("s", [*world.children("a"), ChildSpec("b", start)]).start()
        assert not world.living
        supervisor = await Supervisor("s", [ChildSpec("b", start, significant=False)]).start()
        with pytest.raises(ChildGivenUpError, match="b: given up; b did not start") as caught:
            await supervisor.call("b", "wait", timeout=1)
        assert Classifier().classify(caught.value) is ErrorClass.UNKNOWN
        await supervisor.stop()

    run(scenario())
    assert starts == ["b", "b"]


def test_a_call_fails_at_once_when_the_child_dies_and_the_next_one_waits_for_its_successor() -> None:
    async def scenario() -> None:
        world = World()
        supervisor = await Supervisor("s", world.children("a")).start()
        calling = asyncio.create_task(supervisor.call("a", "wait", timeout=60))
        await settle()
        world.gate.clear()
        world.life("a").die()
        with pytest.raises(ChildDownError, match="a died: EOFError: gone") as caught:
            await calling
        assert caught.value.loss is Loss.DIED
        assert Classifier().classify(caught.value) is ErrorClass.CRASH
        waiting = asyncio.create_task(supervisor.call("a", "number_of_life", timeout=60))
        await settle()
        assert not waiting.done()
        assert not supervisor.alive("a")
        world.gate.set()
        assert await waiting == 2
        await supervisor.stop()

    run(scenario())


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_life_that_is_given_up_is_killed_even_if_the_supervisor_ends_with_it(restarts: int) -> None:
    async def scenario() -> None:
        world = World()
        settings = SupervisionSettings(restarts=restarts)
        supervisor = await Supervisor("s", world.children("a"), settings=settings).start()
        world.news()
        with pytest.raises(ChildDownError):
            await supervisor.call("a", "fail", EOFError("unreachable"), timeout=1)
        await settle()
        assert sorted(world.news()) == ["kill a"] + ["start a"] * restarts
        assert [life.number for life in world.living] == [2] * restarts
        await supervisor.stop()

    run(scenario())


def test_calls_to_a_child_that_is_restarted_with_another_end() -> None:
    async def scenario() -> None:
        world = World()
        supervisor = await Supervisor("s", world.children("ab"), strategy=ALL).start()
        calling = asyncio.create_task(supervisor.call("b", "wait", timeout=60))
        await settle()
        world.life("a").die()
        with pytest.raises(ChildDownError, match="restarted together with a") as caught:
            await calling
        assert caught.value.loss is Loss.STOPPED
        await supervisor.stop()

    run(scenario())


def test_calls_have_deadlines_and_pass_on_what_methods_raise() -> None:
    async def scenario() -> None:
        world = World()
        supervisor = await Supervisor("s", world.children("a")).start()
        with pytest.raises(DeadlineError, match=r"a\.wait: no answer within 0\.01 s") as caught:
            await supervisor.call("a", "wait", timeout=0.01)
        assert Classifier().classify(caught.value) is ErrorClass.TRANSIENT
        with pytest.raises(KeyError):
            await supervisor.call("a", "fail", KeyError("x"), timeout=1)
        with pytest.raises(TimeoutError) as own:
            await supervisor.call("a", "fail", TimeoutError("its own"), timeout=1)
        assert not isinstance(own.value, DeadlineError)
        calling = asyncio.create_task(supervisor.call("a", "wait", timeout=60))
        await settle()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        with pytest.raises(ConfigError, match="known are a"):
            await supervisor.call("b", "wait", timeout=1)
        assert await supervisor.call("a", "number_of_life", timeout=1) == 1
        await supervisor.stop()

    run(scenario())


def test_children_come_and_go_while_it_runs() -> None:
    async def scenario() -> None:
        world = World()
        supervisor = await Supervisor("s").start()
        supervisor.add(world.child("a"))
        assert await supervisor.call("a", "number_of_life", timeout=1) == 1
        with pytest.raises(ConfigError, match="is supervised already"):
            supervisor.add(world.child("a"))
        await supervisor.restart("a")
        assert await supervisor.call("a", "number_of_life", timeout=1) == 2
        world.gate.clear()
        supervisor.add(world.child("b"))  # waits for resources, until it has to make way
        await settle()
        await supervisor.remove("b")
        await supervisor.remove("a")
        world.gate.set()
        await settle()
        assert not world.living
        assert world.starts["b"] == 0
        await supervisor.stop()

    run(scenario())


def test_a_spare_takes_over_with_the_state_and_is_replaced() -> None:
    async def scenario() -> None:
        world = World()
        supervisor = await Supervisor("s", world.children("a", spares=1), settings=QUICK).start()
        await settle()
        assert world.starts["a"] == 2
        supervisor._children["a"].snapshot = "state"
        world.gate.clear()  # nothing new can be started
        world.life("a").die()
        await settle()
        assert await supervisor.call("a", "number_of_life", timeout=1) == 2
        assert await supervisor.call("a", "get_state", timeout=1) == "state"
        world.gate.set()
        await settle()
        assert [life.number for life in world.living] == [2, 3]
        world.living[1].die()  # a spare that dies is no failure of the child
        await settle()
        assert [life.number for life in world.living] == [2, 4]
        await supervisor.stop()
        assert not world.living

    run(scenario())


@pytest.mark.parametrize("spares", [0, 1])
def test_a_life_that_ends_while_it_takes_over_is_replaced_again(spares: int) -> None:
    async def scenario() -> None:
        world = World()
        supervisor = await Supervisor("s", world.children("a", spares=spares), settings=QUICK).start()
        await settle()
        supervisor._children["a"].snapshot = "state"
        world.mortal[2] = True
        world.life("a").die()
        await settle()
        assert await supervisor.call("a", "number_of_life", timeout=1) == 3
        await supervisor.stop()
        assert not world.living

    run(scenario())


def test_a_spare_is_started_after_a_pause_or_when_it_is_needed() -> None:
    async def scenario() -> None:
        world = World()
        settings = QUICK.model_copy(update={"spare_pause_seconds": 1000})
        supervisor = await Supervisor("s", world.children("a", spares=1), settings=settings).start()
        await settle()
        assert world.starts["a"] == 1
        world.life("a").die()
        await settle()
        assert await supervisor.call("a", "number_of_life", timeout=1) == 2
        assert [life.number for life in world.living] == [2]
        await supervisor.stop()

    run(scenario())


def test_a_child_that_was_removed_says_so_to_those_who_wait() -> None:
    async def scenario() -> None:
        world = World()
        world.gate.clear()
        supervisor = await Supervisor("s").start()
        supervisor.add(world.child("a"))
        waiting = asyncio.create_task(supervisor.call("a", "number_of_life", timeout=60))
        await settle()
        await supervisor.remove("a")
        with pytest.raises(ChildDownError, match="a stopped: it was removed") as caught:
            await waiting
        assert caught.value.loss is Loss.STOPPED
        await supervisor.stop()

    run(scenario())


def test_spares_that_keep_dying_are_given_up_and_the_child_lives_on() -> None:
    async def scenario() -> None:
        world = World()
        supervisor = await Supervisor("s", world.children("a", spares=1), settings=QUICK).start()
        await settle()
        for _ in range(3):
            world.living[1].die()
            await settle()
        assert [life.number for life in world.living] == [1]
        assert await supervisor.call("a", "number_of_life", timeout=1) == 1
        await supervisor.stop()

    run(scenario())


def test_a_child_that_keeps_failing_on_a_node_goes_elsewhere() -> None:
    async def scenario() -> None:
        world = World()
        supervisor = await Supervisor("s", world.children("a")).start()
        for _ in range(3):
            world.life("a").die()
            await settle()
        assert world.avoided == [frozenset(), frozenset(), frozenset({"bad"}), frozenset({"bad"})]
        assert world.life("a").node == "good"
        await supervisor.stop()

    run(scenario())


def test_a_child_whose_nodes_are_all_bad_stays_and_its_spares_are_used() -> None:
    async def scenario() -> None:
        world = World()
        spec = world.child("a", spares=1, avoidable=lambda _: frozenset())
        supervisor = await Supervisor("s", [spec]).start()
        for life in range(2, 6):
            await settle()
            world.life("a").die()
            await settle()
            assert await supervisor.call("a", "number_of_life", timeout=1) == life
        assert set(world.avoided) == {frozenset()}
        await supervisor.stop()

    run(scenario())


def test_a_defect_of_the_supervision_ends_it_with_its_cause() -> None:
    async def scenario() -> None:
        world = World()

        def emit(kind: str, **_: Any) -> None:
            if kind == "child_down":
                raise ZeroDivisionError("in the journal")

        supervisor = await Supervisor("s", world.children("ab"), emit=emit).start()
        world.life("a").die()
        assert "ZeroDivisionError: in the journal" in str(await supervisor.death())
        assert not world.living

    run(scenario())
