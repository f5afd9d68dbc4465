"""The breaker against a simple model of it, and against a herd of callers."""

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from recovery.circuit_breaker import (
    Breakers,
    BreakerSettings,
    BreakerState,
    CircuitBreaker,
    CircuitOpenError,
    Permit,
    Transition,
)
from support.clock import Clock


async def succeed() -> str:
    return "done"


async def fail() -> None:
    raise OSError("no")


def opened(clock: Clock, **changes: Any) -> CircuitBreaker:
    breaker = CircuitBreaker("a", BreakerSettings(window=2, minimum_calls=2, **changes), clock=clock)
    for _ in range(2):
        breaker.admit().fail()
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_of_fifty_concurrent_probes_exactly_one_goes_through() -> None:
    clock, calls, release = Clock(), [], asyncio.Event()
    breaker = opened(clock, open_seconds=1.0)
    clock.now = 1.0

    async def slowly(number: int) -> int:
        calls.append(number)
        await release.wait()
        return number

    async def herd() -> list[Any]:
        callers = [asyncio.create_task(breaker.call(slowly, number)) for number in range(50)]
        await asyncio.sleep(0)
        release.set()
        return await asyncio.gather(*callers, return_exceptions=True)

    outcomes = asyncio.run(herd())
    assert len(calls) == 1
    assert sum(isinstance(outcome, CircuitOpenError) for outcome in outcomes) == 49
    assert breaker.state is BreakerState.CLOSED


def test_of_fifty_threads_exactly_one_may_probe() -> None:
    clock = Clock()
    breaker = opened(clock, open_seconds=1.0)
    clock.now = 1.0

    def admitted(_: int) -> bool:
        try:
            return breaker.admit().probe
        except CircuitOpenError:
            return False

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(admitted, range(50))) == 1


def test_a_cancelled_probe_leaves_the_place_to_the_next() -> None:
    clock = Clock()
    breaker = opened(clock, open_seconds=1.0)
    clock.now = 1.0

    async def cancelled_then_good() -> str:
        probe = asyncio.create_task(breaker.call(asyncio.sleep, 60))
        await asyncio.sleep(0)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        assert breaker.state is BreakerState.HALF_OPEN
        return await breaker.call(succeed)

    assert asyncio.run(cancelled_then_good()) == "done"
    assert breaker.state is BreakerState.CLOSED


def test_it_opens_twice_as_long_after_each_failed_probe_up_to_a_limit() -> None:
    clock = Clock()
    breaker = opened(clock, open_seconds=1.0, max_open_seconds=5.0)
    waits = []
    for _ in range(5):
        with pytest.raises(CircuitOpenError) as refused:
            breaker.admit()
        waits.append(refused.value.retry_after)
        clock.now += refused.value.retry_after
        with pytest.raises(OSError, match="no"):
            asyncio.run(breaker.call(fail))
    assert waits == [1, 2, 4, 5, 5]
    clock.now += 5
    asyncio.run(breaker.call(succeed))
    for _ in range(2):
        breaker.admit().fail()
    with pytest.raises(CircuitOpenError) as refused:
        breaker.admit()
    assert refused.value.retry_after == 1


def test_slow_calls_open_it_and_a_slow_probe_does_not_close_it() -> None:
    clock = Clock()
    breaker = CircuitBreaker("a", BreakerSettings(minimum_calls=4, slow_seconds=2, slow_rate=0.5), clock=clock)

    async def take(seconds: float) -> None:
        clock.now += seconds

    for seconds in (0, 1.9, 2, 2):
        assert breaker.state is BreakerState.CLOSED
        asyncio.run(breaker.call(take, seconds))
    assert breaker.state is BreakerState.OPEN
    clock.now += 1
    asyncio.run(breaker.call(take, 3.0))
    assert breaker.state is BreakerState.OPEN


def test_errors_that_say_nothing_of_the_callee_do_not_count() -> None:
    settings = BreakerSettings(window=2, minimum_calls=2)
    breaker = CircuitBreaker("a", settings, counts=lambda error: not isinstance(error, OSError))
    for _ in range(10):
        with pytest.raises(OSError, match="no"):
            asyncio.run(breaker.call(fail))
    assert breaker.state is BreakerState.CLOSED


def test_isolated_it_stays_open_until_reset_and_every_change_is_told() -> None:
    changes = list[Transition]()
    breaker = CircuitBreaker("a", on_change=changes.append)
    breaker.isolate("failed nine times")
    with pytest.raises(CircuitOpenError) as refused:
        breaker.admit()
    assert refused.value.retry_after == float("inf")
    breaker.reset("replaced")
    breaker.admit().succeed()
    assert [(change.before, change.after, change.reason) for change in changes] == [
        ("closed", "isolated", "failed nine times"),
        ("isolated", "closed", "replaced"),
    ]


def test_callers_of_one_agent_share_its_breaker() -> None:
    breakers = Breakers(lambda callee: CircuitBreaker(callee))
    assert breakers["b"] is breakers["b"]
    breakers["a"].isolate("test")
    assert breakers.states() == {"a": BreakerState.ISOLATED, "b": BreakerState.CLOSED}


def test_a_refusal_survives_the_way_between_processes() -> None:
    refusal = pickle.loads(pickle.dumps(CircuitOpenError("agent", 1.5)))  # noqa: S301
    assert (refusal.callee, refusal.retry_after) == ("agent", 1.5)
    assert str(refusal) == "agent: refused by its circuit breaker; try again in 1.5 s"


SETTINGS = BreakerSettings(
    window=4, minimum_calls=3, failure_rate=0.5, slow_seconds=10, open_seconds=5, max_open_seconds=15
)


class BreakerMachine(RuleBasedStateMachine):
    """Keeps what the breaker should know as plain lists and compares."""

    permits: Bundle[tuple[Permit, int, float]] = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.changes = list[Transition]()
        self.breaker = CircuitBreaker("callee", SETTINGS, clock=self.clock, on_change=self.changes.append)
        self.state, self.era = BreakerState.CLOSED, 0
        self.outcomes = list[tuple[bool, bool]]()
        self.until, self.failed_probes = 0.0, 0
        self.probe_is_out = False

    def become(self, state: BreakerState) -> None:
        self.state, self.era = state, self.era + 1
        self.outcomes, self.probe_is_out = [], False

    def open(self) -> None:
        self.until = self.clock.now + min(5 * 2**self.failed_probes, 15)
        self.failed_probes += 1
        self.become(BreakerState.OPEN)

    @rule(seconds=st.sampled_from([0.5, 3, 5, 10, 15]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(target=permits)
    def ask(self) -> Any:
        if self.state is BreakerState.OPEN and self.clock.now >= self.until:
            self.become(BreakerState.HALF_OPEN)
        expected = self.state is BreakerState.CLOSED or (self.state is BreakerState.HALF_OPEN and not self.probe_is_out)
        try:
            permit = self.breaker.admit()
        except CircuitOpenError:
            assert not expected
            return (None, -1, 0.0)
        assert expected
        assert permit.probe == (self.state is BreakerState.HALF_OPEN)
        self.probe_is_out = permit.probe
        return (permit, self.era, self.clock.now)

    @rule(held=consumes(permits), outcome=st.sampled_from(["succeed", "fail", "abandon"]))
    def settle(self, held: tuple[Permit | None, int, float], outcome: str) -> None:
        permit, era, since = held
        if permit is None:
            return
        getattr(permit, outcome)()
        permit.fail()  # only the first report counts
        if era != self.era:
            return
        slow = self.clock.now - since >= 10
        if self.state is BreakerState.HALF_OPEN:
            self.probe_is_out = False
            if outcome == "fail" or (outcome == "succeed" and slow):
                self.open()
            elif outcome == "succeed":
                self.failed_probes = 0
                self.become(BreakerState.CLOSED)
        elif outcome != "abandon":
            self.outcomes = [*self.outcomes, (outcome == "fail", slow)][-4:]
            failures, slow_calls = (sum(kind) for kind in zip(*self.outcomes, strict=True))
            calls = len(self.outcomes)
            if calls >= 3 and (failures >= calls / 2 or slow_calls == calls):
                self.open()

    @precondition(lambda self: self.state is not BreakerState.ISOLATED)
    @rule()
    def isolate(self) -> None:
        self.breaker.isolate("test")
        self.become(BreakerState.ISOLATED)

    @precondition(lambda self: self.state is BreakerState.ISOLATED)
    @rule()
    def reset(self) -> None:
        self.breaker.reset("test")
        self.failed_probes = 0
        self.become(BreakerState.CLOSED)

    @invariant()
    def agrees(self) -> None:
        assert self.breaker.state is self.state
        states = [BreakerState.CLOSED, *(change.after for change in self.changes)]
        assert states[-1] is self.state
        assert [change.before for change in self.changes] == states[:-1]


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
