"""Giving one receiver its messages: by priority, in batches, again after a failure, and not while its breaker is open.

All of this is memory only. Every pending message of the queue is ready, due later, held by the receiver, or on its way
into the log with an outcome. What failed comes again after a growing delay and in ever smaller batches, so that the
last attempt is made alone and no innocent neighbour is buried with a message that kills its receiver.
"""

import asyncio
import heapq
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from coordinators.queues import Queue
from phases.settings import Settings
from recovery.circuit_breaker import BreakerSettings, CircuitBreaker, CircuitOpenError, Permit
from recovery.inbox import Delivery, Message, Receipt

_PROBE_POLL_SECONDS = 0.05


class FlowSettings(Settings):
    """How much a flow holds, and how it deals with receivers."""

    capacity: int = Field(default=10_000, ge=1, description="messages to one receiver that are not done; dead ones too")
    batch: int = Field(default=256, ge=1, description="most messages in a delivery")
    max_body_bytes: int = Field(default=64 << 10, ge=1, description="of one message; what is larger goes to storage")
    receipt_seconds: float = Field(
        default=30.0, gt=0, description="without a receipt for so long it is given out again"
    )
    max_attempts: int = Field(default=5, ge=2, description="failed attempts until a message is dead")
    retry_seconds: float = Field(default=0.1, ge=0, description="until the second attempt; doubles with each")
    publish_seconds: float = Field(default=60.0, gt=0, description="longest wait of a publisher for a full queue")
    breaker: BreakerSettings = BreakerSettings()


@dataclass(frozen=True)
class Outcome:
    """What became of messages that a receiver held, by offset; what failed by why."""

    done: list[int]
    failed: dict[str, list[int]]


@dataclass
class _Held:
    messages: list[Message]
    deadline: float
    permit: Permit


@dataclass
class Deliveries:
    """The deliveries of one `queue`. `incarnation` tells receipts to this flow from those to an earlier one."""

    queue: Queue
    breaker: CircuitBreaker
    settings: FlowSettings
    clock: Callable[[], float]
    incarnation: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # replaced by each change
    reserved: int = 0  # messages that are being written
    _ready: dict[int, deque[Message]] = field(default_factory=lambda: defaultdict(deque))  # by priority
    _retries: list[tuple[float, Message]] = field(default_factory=list)  # heap by when they are due, then by offset
    _held: dict[str, _Held] = field(default_factory=dict)
    _count: int = 0

    @property
    def held(self) -> int:
        """The number of messages that are out."""
        return sum(len(held.messages) for held in self._held.values())

    def has_room(self, count: int) -> bool:
        """Say whether the queue may take `count` more."""
        return len(self.queue) + self.reserved + count <= self.settings.capacity

    def wake(self) -> None:
        """Let everybody look again who waits for messages or for room."""
        self.changed.set()
        self.changed = asyncio.Event()

    def add(self, messages: Sequence[Message]) -> None:
        """Make messages deliverable, those that failed before after a delay."""
        failures = self.queue.failures
        if not failures and len({message.priority for message in messages}) == 1:
            self._ready[messages[0].priority].extend(messages)  # nearly always
        else:
            for message in messages:
                if attempts := failures.get(message.offset, 0):
                    due = self.clock() + self.settings.retry_seconds * 2.0 ** (attempts - 1)
                    heapq.heappush(self._retries, (due, message))
                else:
                    self._ready[message.priority].append(message)
        self.wake()

    def next(self, limit: int) -> Delivery | None:
        """Return the next delivery, or None where there is nothing for the receiver now."""
        if not self._retry_is_due() and not any(self._ready.values()):
            return None
        try:
            permit = self.breaker.admit()
        except CircuitOpenError:
            return None
        limit = 1 if permit.probe else limit
        messages = self._take_retries(limit) if self._retry_is_due() else self._take_ready(limit)
        self._count += 1
        identity = f"{self.incarnation}-{self._count}"
        self._held[identity] = _Held(messages, self.clock() + self.settings.receipt_seconds, permit)
        return Delivery(identity, messages)

    def look_again(self) -> float:
        """Return the time at which `next` or `overdue` may have something, if nothing changes before."""
        times = [held.deadline for held in self._held.values()]
        if self._retries:
            times.append(max(self._retries[0][0], self.clock() + self._refused_seconds()))
        if self._ready:
            times.append(self.clock() + self._refused_seconds())
        return min(times, default=math.inf)

    def settle(self, receipt: Receipt) -> Outcome | None:
        """Take a receipt; None where the delivery was given up before."""
        held = self._held.pop(receipt.delivery, None)
        if held is None:
            return None
        done, failed = list[int](), defaultdict[str, list[int]](list)
        for message in held.messages:
            if message.offset in receipt.failed:
                failed[receipt.failed[message.offset]].append(message.offset)
            else:
                done.append(message.offset)
        if done:
            held.permit.succeed()  # the receiver works, whatever is wrong with the others
        else:
            held.permit.fail()
        return Outcome(done, dict(failed))

    def overdue(self) -> Outcome:
        """Give up the deliveries whose receipt did not come in time."""
        now = self.clock()
        late = [identity for identity, held in self._held.items() if held.deadline <= now]
        return self._give_up(late, f"no receipt within {self.settings.receipt_seconds:g} s")

    def release(self, reason: str) -> Outcome:
        """Give up all deliveries, since the receiver is known to be gone."""
        return self._give_up(list(self._held), reason)

    def _give_up(self, identities: Sequence[str], reason: str) -> Outcome:
        offsets = list[int]()
        for identity in identities:
            held = self._held.pop(identity)
            held.permit.fail()
            offsets += [message.offset for message in held.messages]
        return Outcome([], {reason: offsets} if offsets else {})

    def _retry_is_due(self) -> bool:
        return bool(self._retries) and self._retries[0][0] <= self.clock()

    def _take_retries(self, limit: int) -> list[Message]:
        """Take messages that are due and have failed equally often."""
        failures = self.queue.failures
        attempts = failures[self._retries[0][1].offset]
        limit = _shrunk(limit, attempts, self.settings.max_attempts)
        messages = list[Message]()
        while len(messages) < limit and self._retry_is_due() and failures[self._retries[0][1].offset] == attempts:
            messages.append(heapq.heappop(self._retries)[1])
        return messages

    def _take_ready(self, limit: int) -> list[Message]:
        messages = list[Message]()
        for priority in sorted(self._ready, reverse=True):
            queue = self._ready[priority]
            messages += [queue.popleft() for _ in range(min(limit - len(messages), len(queue)))]
            if not queue:
                del self._ready[priority]
        return messages

    def _refused_seconds(self) -> float:
        """Return for how long the breaker is sure to refuse."""
        return max(self.breaker.retry_after(), _PROBE_POLL_SECONDS)


def _shrunk(limit: int, attempts: int, max_attempts: int) -> int:
    """Return the size of a batch that failed so often: geometrically from `limit` to 1 in the last attempt."""
    left = 1 - attempts / (max_attempts - 1)
    return max(1, round(math.pow(limit, left)))
