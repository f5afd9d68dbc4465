"""A circuit breaker for one callee, shared by all that call it.

Closed, it lets calls through and looks at the last `window` of them; when too many failed or were slow it opens and
refuses calls at once. After a while it is half open: exactly one call goes through as a probe, however many ask at the
same moment, and its outcome closes the breaker or opens it for twice as long. The breaker knows time only through its
clock, and nothing of what it protects. Semantics after resilience4j; safe to use from several threads and event loops.
"""

import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import ParamSpec, TypeVar

from pydantic import Field

from phases.errors import ForgeError
from phases.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


class BreakerSettings(Settings):
    """When a breaker opens, and for how long."""

    window: int = Field(default=20, ge=1, description="calls that the rates are taken over")
    minimum_calls: int = Field(default=5, ge=1, description="calls in the window before a rate counts")
    failure_rate: float = Field(default=0.5, gt=0, le=1, description="share of failed calls that opens it")
    slow_seconds: float = Field(default=inf, gt=0, description="a call that takes as long is slow; never by default")
    slow_rate: float = Field(default=1.0, gt=0, le=1, description="share of slow calls that opens it")
    open_seconds: float = Field(
        default=1.0, gt=0, description="time until the first probe; doubles with each failed one"
    )
    max_open_seconds: float = Field(default=60.0, gt=0, description="longest time between probes")


class BreakerState(StrEnum):
    """`isolated` is open until `reset`, without probes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"


class CircuitOpenError(ForgeError):
    """A call that was refused. `retry_after` is in seconds, infinite where no probe will come."""

    def __init__(self, callee: str, retry_after: float) -> None:
        super().__init__(callee, retry_after)
        self.callee, self.retry_after = callee, retry_after

    def __str__(self) -> str:
        return f"{self.callee}: refused by its circuit breaker; try again in {self.retry_after:.3g} s"


@dataclass(frozen=True)
class Transition:
    """A change of state, for a journal or a gauge. `time` is the breaker's clock's."""

    callee: str
    before: BreakerState
    after: BreakerState
    reason: str
    time: float


class Permit:
    """The right to make one call. Its holder reports the outcome once; later reports do nothing."""

    def __init__(self, breaker: "CircuitBreaker", generation: int, probe: bool) -> None:
        self._breaker, self._generation = breaker, generation
        self._started = breaker.clock()
        self._settled = False
        self.probe = probe

    def succeed(self) -> None:
        """The call returned; whether it was slow is measured from when the permit was given."""
        self._settle(failed=False)

    def fail(self) -> None:
        """The call failed in a way that speaks against the callee."""
        self._settle(failed=True)

    def abandon(self) -> None:
        """The call ended without saying anything of the callee, e.g. it was cancelled; the next caller may probe."""
        self._settle(failed=None)

    def _settle(self, failed: bool | None) -> None:
        if not self._settled:
            self._settled = True
            self._breaker._settle(self._generation, failed, self._breaker.clock() - self._started)


class CircuitBreaker:
    """`counts` says which exceptions speak against the callee; `on_change` is told of every change, in order."""

    def __init__(
        self,
        callee: str,
        settings: BreakerSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        counts: Callable[[Exception], bool] = lambda _: True,
        on_change: Callable[[Transition], None] = lambda _: None,
    ) -> None:
        self.callee, self.settings, self.clock = callee, settings or BreakerSettings(), clock
        self._counts, self._on_change = counts, on_change
        self._lock = threading.RLock()
        self._state = BreakerState.CLOSED
        self._outcomes = deque[tuple[bool, bool]]()  # (failed, slow) of the last calls, and how many were either
        self._failed = self._slow = 0
        self._generation = 0  # grows with each change of state, so that outcomes of calls before it do not count
        self._openings = 0  # in a row, without a successful probe between
        self._open_until = -inf
        self._probing = False

    @property
    def state(self) -> BreakerState:
        """The state as of the last call; an open breaker becomes half open when someone asks after its time is over."""
        return self._state

    def admit(self) -> Permit:
        """Return a permit for one call. Raises `CircuitOpenError` where the callee is to be left alone."""
        with self._lock:
            if self._state is BreakerState.OPEN and self.clock() >= self._open_until:
                self._change(BreakerState.HALF_OPEN, f"open for {self._open_seconds():.3g} s")
            if self._state is BreakerState.CLOSED:
                return Permit(self, self._generation, probe=False)
            if self._state is BreakerState.HALF_OPEN and not self._probing:
                self._probing = True
                return Permit(self, self._generation, probe=True)
            raise CircuitOpenError(self.callee, self.retry_after())

    def retry_after(self) -> float:
        """Return for how many seconds calls are sure to be refused; 0 where one may be admitted."""
        if self._state is BreakerState.ISOLATED:
            return inf
        return max(self._open_until - self.clock(), 0.0) if self._state is BreakerState.OPEN else 0.0

    async def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `function(*args, **kwargs)` if admitted, and count its outcome. Raises what it raises."""
        permit = self.admit()
        try:
            result = await function(*args, **kwargs)
        except Exception as error:
            if self._counts(error):
                permit.fail()
            else:
                permit.succeed()
            raise
        else:
            permit.succeed()
            return result
        finally:
            permit.abandon()  # does nothing unless the call was cancelled

    def isolate(self, reason: str) -> None:
        """Refuse all calls until `reset`."""
        with self._lock:
            if self._state is not BreakerState.ISOLATED:
                self._change(BreakerState.ISOLATED, reason)

    def reset(self, reason: str) -> None:
        """Forget all outcomes and let calls through, e.g. since the callee was replaced."""
        with self._lock:
            self._openings = 0
            if self._state is BreakerState.CLOSED:
                self._forget()
            else:
                self._change(BreakerState.CLOSED, reason)

    def _settle(self, generation: int, failed: bool | None, seconds: float) -> None:
        with self._lock:
            if generation != self._generation:
                return
            slow = seconds >= self.settings.slow_seconds
            if self._state is BreakerState.CLOSED and failed is not None:
                self._count(failed, slow)
                if reason := self._too_bad():
                    self._open(reason)
            elif self._state is BreakerState.HALF_OPEN:
                self._probing = False
                if failed or (slow and failed is not None):
                    self._open("the probe failed" if failed else f"the probe took {seconds:.3g} s")
                elif failed is False:
                    self._openings = 0
                    self._change(BreakerState.CLOSED, "the probe succeeded")

    def _count(self, failed: bool, slow: bool) -> None:
        if len(self._outcomes) == self.settings.window:
            oldest = self._outcomes.popleft()
            self._failed -= oldest[0]
            self._slow -= oldest[1]
        self._outcomes.append((failed, slow))
        self._failed += failed
        self._slow += slow

    def _too_bad(self) -> str | None:
        """Return why the window's calls are reason to open, or None."""
        calls = len(self._outcomes)
        if calls < min(self.settings.minimum_calls, self.settings.window):
            return None
        if self._failed >= self.settings.failure_rate * calls:
            return f"{self._failed} of {calls} calls failed"
        if self._slow >= self.settings.slow_rate * calls:
            return f"{self._slow} of {calls} calls took {self.settings.slow_seconds:.3g} s or more"
        return None

    def _open(self, reason: str) -> None:
        self._openings += 1
        self._open_until = self.clock() + self._open_seconds()
        self._change(BreakerState.OPEN, reason)

    def _open_seconds(self) -> float:
        doublings = min(self._openings - 1, 64)
        return min(self.settings.open_seconds * 2.0**doublings, self.settings.max_open_seconds)

    def _change(self, after: BreakerState, reason: str) -> None:
        before, self._state = self._state, after
        self._forget()
        self._on_change(Transition(self.callee, before, after, reason, self.clock()))

    def _forget(self) -> None:
        self._generation += 1
        self._probing = False
        self._outcomes.clear()
        self._failed = self._slow = 0


class Breakers:
    """One breaker per callee, made when first asked for; callers of the same agent share it."""

    def __init__(self, make: Callable[[str], CircuitBreaker]) -> None:
        self._make = make
        self._breakers: dict[str, CircuitBreaker] = {}

    def __getitem__(self, callee: str) -> CircuitBreaker:
        if callee not in self._breakers:
            self._breakers[callee] = self._make(callee)
        return self._breakers[callee]

    def states(self) -> dict[str, BreakerState]:
        """Return callee -> state of all breakers so far."""
        return {callee: breaker.state for callee, breaker in sorted(self._breakers.items())}
