"""A supervisor under random failures, against a model without concurrency."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from recovery.children import RestartStrategy, affected
from recovery.supervisor import Supervisor
from support.clock import Clock
from support.supervision import QUICK, World, settle


class SupervisorMachine(RuleBasedStateMachine):
    """Children die, refuse to start, come and go; a model without concurrency says who lives and who was restarted."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.order: list[str] = []
        self.lives: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.spent: dict[str, list[float]] = {}
        self.optional: set[str] = set()
        self.given_up: set[str] = set()
        self.over = False

    @initialize(strategy=st.sampled_from(RestartStrategy), optional=st.sets(st.sampled_from("abc")))
    def begin(self, strategy: RestartStrategy, optional: set[str]) -> None:
        self.strategy, self.optional = strategy, optional
        self.supervisor, self.world = self.do(self.made())

    async def made(self) -> tuple[Supervisor, World]:
        world = World()
        specs = [world.child(name, significant=name not in self.optional) for name in "abc"]
        self.order = list("abc")
        self.lives.update(self.order)
        supervisor = Supervisor("s", specs, strategy=self.strategy, settings=QUICK, clock=self.clock)
        return await supervisor.start(), world

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def and_settle() -> Any:
            result = await work
            await settle()
            return result

        return self.loop.run_until_complete(and_settle())

    def spend(self, name: str) -> bool:
        times = self.spent.setdefault(name if name in self.optional else "", [])
        times[:] = [at for at in times if self.clock.now - at <= QUICK.period_seconds] + [self.clock.now]
        return len(times) <= QUICK.restarts

    def fail(self, failed: str | None, down: set[str]) -> None:
        """What should follow from the failure of a child while others are `down`, too."""
        while failed is not None:
            group = [name for name in affected(self.strategy, self.order, failed) if name not in self.given_up]
            if self.spend(failed):
                down |= set(group)
            elif failed in self.optional:
                self.given_up.add(failed)
            else:
                self.over = True
                return
            failed = self.launch([name for name in group if name in down and name not in self.given_up], down)

    def launch(self, group: list[str], down: set[str]) -> str | None:
        for name in group:
            if self.refusals[name]:
                self.refusals[name] -= 1
                return name
            self.lives[name] += 1
            down.discard(name)
        return None

    def living(self) -> list[str]:
        return [] if self.over else [name for name in self.order if name not in self.given_up]

    @rule(seconds=st.sampled_from([1, 4, 11]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(name=st.sampled_from("abcd"), times=st.integers(1, 3))
    def refuse(self, name: str, times: int) -> None:
        self.refusals[name] = self.world.refusals[name] = times

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.living()))
        self.do(self.dying(name))
        self.fail(name, {name})

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.living()))
        self.do(self.supervisor.restart(name))
        down = set(affected(self.strategy, self.order, name))
        self.fail(
            self.launch([n for n in affected(self.strategy, self.order, name) if n not in self.given_up], down), down
        )

    @precondition(lambda self: not self.over and "d" not in self.order)
    @rule()
    def add(self) -> None:
        self.do(self.adding())
        self.order.append("d")
        down = {"d"}
        self.fail(self.launch(["d"], down), down)

    @precondition(lambda self: not self.over and "d" in self.order)
    @rule()
    def remove(self) -> None:
        self.do(self.supervisor.remove("d"))
        self.order.remove("d")

    async def dying(self, name: str) -> None:
        self.world.life(name).die()

    async def adding(self) -> None:
        self.supervisor.add(self.world.child("d"))

    @invariant()
    def those_live_that_should_and_nobody_twice(self) -> None:
        if self.order:
            assert sorted(life.name for life in self.world.living) == sorted(self.living())
            assert {name: self.world.starts[name] for name in self.living()} == {
                n: self.lives[n] for n in self.living()
            }

    @invariant()
    def calls_reach_the_present_life(self) -> None:
        for name in self.living():
            assert self.do(self.supervisor.call(name, "number_of_life", timeout=5)) == self.lives[name]

    def teardown(self) -> None:
        if self.order:
            self.do(self.supervisor.stop())
            assert not self.world.living
        self.loop.close()


TestSupervisorMachine = SupervisorMachine.TestCase
TestSupervisorMachine.settings = hypothesis_settings(max_examples=60, stateful_step_count=20, deadline=None)
