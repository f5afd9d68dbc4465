"""The data flow: events between agents, phases and the outside, kept until they are handled.

A publisher names itself and numbers what it publishes, so that it may publish again after any doubt; when its call
returns, the messages are in the store. Each receiver of the topic gets them at least once, until its receipt comes;
with an inbox (`recovery/inbox.py`) their effect is there exactly once. A full queue makes publishers wait. Whatever
changes the queues is written first, all that waits in one segment, and a flow that was taken over is refused by the
store.
"""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgpack
import ray
from ray.exceptions import ActorAlreadyExistsError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from actors.agent import NAMESPACE, as_actor, flow_name
from coordinators.deliveries import Deliveries, FlowSettings, Outcome
from coordinators.queues import FlowState, Queue, Record
from phases import storage
from phases.errors import ArtifactError, ConfigError, ForgeError
from recovery.circuit_breaker import CircuitBreaker, Transition
from recovery.commits import FencedError
from recovery.inbox import Delivery, Receipt
from recovery.intervals import Intervals
from recovery.journal import Journal
from recovery.segments import Flags, SegmentLog
from recovery.serialization import Limits, frame, unframe

_LIMITS = Limits(max_bytes=4 << 30)  # of our own records, whose parts were checked before
_SEGMENT_BYTES = 8 << 20
_COMPACT_BYTES = 4 << 20
_COMPACT_SEGMENTS = 1000
_ATTEMPTS_TO_OPEN = 10
_log = logging.getLogger(__name__)


class FlowFullError(ForgeError, TimeoutError):
    """A receiver did not make room for a message in time."""


@dataclass
class _Change:
    """A record that waits to be written. `reserved` messages of each receiver become real or superfluous by it."""

    record: Record
    written: "asyncio.Future[int]"
    size: int = 0
    receivers: Sequence[str] = ()
    reserved: int = 0


class DataFlow:
    """The flow stored below `uri`; opening it takes it over from whoever had it. One event loop calls its methods.

    Raises `ArtifactError` where the store is damaged. Afterwards its methods raise `FencedError` once another process
    has taken over, or whatever the store raised once a write has failed; such a flow is to be opened again.
    """

    def __init__(
        self,
        uri: str,
        settings: FlowSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[Transition], None] = lambda _: None,
    ) -> None:
        self.settings, self.clock, self._on_change = settings or FlowSettings(), clock, on_change
        self._log = SegmentLog(uri)
        self._state = self._take_over()
        self._incarnation = self._log.position
        self._deliveries: dict[str, Deliveries] = {}
        self._admission = defaultdict[str, asyncio.Lock](asyncio.Lock)
        self._waiting = deque[_Change]()
        self._writer: asyncio.Task[None] | None = None
        self._broken: Exception | None = None
        for receiver, queue in self._state.queues.items():
            if queue.pending:
                self._of(receiver).add(list(queue.pending.values()))

    async def subscribe(self, topic: str, receiver: str) -> None:
        """Let a receiver have what is published to a topic from now on; no change where it is subscribed already."""
        if receiver not in self._state.routes.get(topic, ()):
            await self._write(["subscribe", topic, receiver])

    async def publish(
        self,
        topic: str,
        bodies: Sequence[bytes],
        *,
        source: str,
        first: int,
        priority: int = 0,
        timeout: float | None = None,
    ) -> int:
        """Publish messages numbered from `first` by their source and return how many are new, when they are durable.

        Waits while a receiver's queue is full; raises `FlowFullError` after `timeout` seconds, and `ConfigError` for a
        topic without receivers or a message that is too large.
        """
        self._check()
        receivers = self._checked_receivers(topic, bodies)
        if self._state.is_known(source, first, first + len(bodies)):
            return 0
        await self._reserve(receivers, len(bodies), self.settings.publish_seconds if timeout is None else timeout)
        record = ["publish", topic, source, first, priority, bodies]
        return await self._write(record, sum(map(len, bodies)), receivers, len(bodies))

    async def pull(
        self, receiver: str, *, limit: int | None = None, wait: float = 0.0, receipt: Receipt | None = None
    ) -> Delivery | None:
        """Take the receipt of the last delivery and return the next, waiting up to `wait` seconds for one."""
        if receipt is not None:
            self.acknowledge(receiver, receipt)
        deliveries, deadline = self._of(receiver), self.clock() + wait
        while True:
            self._check()
            self._note(receiver, deliveries.overdue())
            changed = deliveries.changed
            delivery = deliveries.next(limit or self.settings.batch)
            if delivery is not None or self.clock() >= deadline:
                return delivery
            left = min(deadline, deliveries.look_again()) - self.clock()
            try:
                await asyncio.wait_for(changed.wait(), max(left, 0.001))
            except TimeoutError:
                continue  # something is due, or the wait is over

    def acknowledge(self, receiver: str, receipt: Receipt) -> bool:
        """Take a receipt; return False where the delivery was given up before, and its messages will come again."""
        outcome = self._of(receiver).settle(receipt)
        if outcome is not None:
            self._note(receiver, outcome)
        return outcome is not None

    def release(self, receiver: str, reason: str) -> None:
        """Give out again what a receiver holds, since it is known to be gone."""
        self._note(receiver, self._of(receiver).release(reason))

    async def revive(self, receiver: str) -> int:
        """Put a receiver's dead letters back into its queue, with all attempts; return how many."""
        offsets = list(self._of(receiver).queue.dead)
        return await self._write(["revive", receiver, offsets]) if offsets else 0

    def next_number(self, source: str) -> int:
        """Return the number after the last that a source has published; 0 where there is none."""
        return self._state.next_number(source)

    def status(self) -> dict[str, Any]:
        """Return, by receiver, the state of its queue and its breaker, as JSON can hold it."""
        report = _report(self._state)
        for receiver, queue in report.items():
            deliveries = self._of(receiver)
            queue |= {"held": deliveries.held, "breaker": str(deliveries.breaker.state)}
        return report

    async def close(self) -> None:
        """Write what is waiting to be written."""
        while self._writer is not None and not self._writer.done():
            await self._writer
        self._check()

    def _take_over(self) -> FlowState:
        """Read the store and put a snapshot behind its end, which fences off whoever wrote it."""
        for _ in range(_ATTEMPTS_TO_OPEN):
            state = _read(self._log)
            try:
                self._put_snapshot(state.snapshot(), [], Flags.SNAPSHOT | Flags.TAKEOVER)
            except FencedError:
                continue  # its last write was faster
            return state
        raise ArtifactError(f"{self._log.uri}: other processes keep writing it; stop them")

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _of(self, receiver: str) -> Deliveries:
        if receiver not in self._deliveries:
            if receiver not in self._state.queues:
                known = ", ".join(sorted(self._state.queues)) or "none"
                raise ConfigError.of("receiver", receiver, "not subscribed to anything", f"receivers are {known}")
            breaker = CircuitBreaker(receiver, self.settings.breaker, clock=self.clock, on_change=self._on_change)
            queue = self._state.queues[receiver]
            self._deliveries[receiver] = Deliveries(queue, breaker, self.settings, self.clock, self._incarnation)
        return self._deliveries[receiver]

    def _checked_receivers(self, topic: str, bodies: Sequence[bytes]) -> list[str]:
        receivers = self._state.routes.get(topic, [])
        if not receivers:
            known = ", ".join(sorted(self._state.routes)) or "none"
            raise ConfigError.of("topic", topic, "nobody receives it", f"subscribe first; topics are {known}")
        if len(bodies) > self.settings.capacity:
            fix = f"publish at most {self.settings.capacity} at once"
            raise ConfigError.of("messages", len(bodies), "more than a queue holds", fix)
        if (largest := max(map(len, bodies), default=0)) > self.settings.max_body_bytes:
            fix = f"put it into storage and send its URI; {self.settings.max_body_bytes} bytes at most"
            raise ConfigError.of("message", f"{largest} bytes", "too large", fix)
        return receivers

    async def _reserve(self, receivers: Sequence[str], count: int, timeout: float) -> None:
        """Wait until each of the queues has room, first come, first served by route, and take it."""
        queues = {receiver: self._of(receiver) for receiver in receivers}
        full = list[str]()
        try:
            async with asyncio.timeout(timeout), self._admission["\n".join(receivers)]:
                while full := [name for name, queue in queues.items() if not queue.has_room(count)]:
                    await queues[full[0]].changed.wait()
                    self._check()
                for queue in queues.values():
                    queue.reserved += count
        except TimeoutError:
            who = ", ".join(full) or "other publishers wait"
            raise FlowFullError(f"no room for {count} messages within {timeout:g} s: {who}") from None

    def _note(self, receiver: str, outcome: Outcome) -> None:
        """Put the outcome of deliveries on its way into the log."""
        if outcome.done:
            self._enqueue(_Change(["done", receiver, Intervals.of(outcome.done).pairs()], self._future()))
        failures = self._state.queues[receiver].failures
        for reason, offsets in outcome.failed.items():
            left = self.settings.max_attempts - 1
            again = [offset for offset in offsets if failures.get(offset, 0) < left]
            dead = [offset for offset in offsets if failures.get(offset, 0) >= left]
            if again:
                self._enqueue(_Change(["fail", receiver, again], self._future()))
            if dead:
                _log.error("%s: %d messages are dead: %s", receiver, len(dead), reason)
                self._enqueue(_Change(["bury", receiver, dead, reason], self._future()))

    async def _write(self, record: Record, size: int = 0, receivers: Sequence[str] = (), reserved: int = 0) -> int:
        """Return how many messages became deliverable to each receiver, once the record is durable."""
        change = _Change(record, self._future(), size, receivers, reserved)
        self._enqueue(change)
        return await asyncio.shield(change.written)

    def _future(self) -> "asyncio.Future[int]":
        return asyncio.get_running_loop().create_future()

    def _enqueue(self, change: _Change) -> None:
        self._check()
        self._waiting.append(change)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        """Write what waits, everything in one segment, and apply it, until nothing is left."""
        while self._waiting:
            changes, size = list[_Change](), 0
            while self._waiting and size < _SEGMENT_BYTES:
                changes.append(self._waiting.popleft())
                size += changes[-1].size
            try:
                records = [change.record for change in changes]
                if self._written > self._compact_bytes or self._segments > _COMPACT_SEGMENTS:
                    await asyncio.to_thread(self._put_snapshot, self._state.snapshot(), records, Flags.SNAPSHOT)
                else:
                    await asyncio.to_thread(self._put, records)
                for change in changes:
                    self._apply(change)
            except Exception as error:
                self._break(error, changes)

    def _put(self, records: Sequence[Record]) -> None:
        payload = _pack(records)
        self._log.append(payload)
        self._written += len(payload)
        self._segments += 1

    def _put_snapshot(self, snapshot: Record, records: Sequence[Record], flags: Flags) -> None:
        """Put records behind a snapshot; the next one is due when as much again has been written."""
        payload = _pack([snapshot, *records])
        self._log.append(payload, flags)
        self._log.compact()
        self._written = self._segments = 0
        self._compact_bytes = max(_COMPACT_BYTES, 2 * len(payload))

    def _apply(self, change: _Change) -> None:
        count = 0
        for receiver, messages in self._state.apply(change.record):
            count = len(messages)
            self._of(receiver).add(messages)
        for receiver in change.receivers:
            self._of(receiver).reserved -= change.reserved
        if change.record[0] == "done":
            self._of(change.record[1]).wake()  # there is room
        elif change.reserved > count:
            for receiver in change.receivers:
                self._of(receiver).wake()
        if not change.written.done():
            change.written.set_result(count)

    def _break(self, error: Exception, changes: Sequence[_Change]) -> None:
        """Refuse everything from now on, since memory and store may differ."""
        _log.error("data flow stopped: %s", error)
        self._broken = error
        for change in [*changes, *self._waiting]:
            if not change.written.done():
                change.written.set_exception(error)
                change.written.exception()  # seen here, for those that nobody waits for
        self._waiting.clear()
        for deliveries in self._deliveries.values():
            deliveries.wake()


class DataFlowCoordinator(DataFlow):
    """The flow of a run as an actor. Changes of its breakers are events in the run's journal."""

    def __init__(self, run: str, settings: FlowSettings | None = None) -> None:
        self._journal = Journal(run)
        super().__init__(flow_uri(run), settings, on_change=self._log_breaker)

    def _log_breaker(self, change: Transition) -> None:
        self._journal.note("breaker", **vars(change))


def flow_uri(run: str) -> str:
    """Return where the flow of a run is stored."""
    return storage.join(run, "dataflow")


def spawn_flow(run: str, settings: FlowSettings | None = None) -> Any:
    """Start the flow of a run as a named actor, in place of one that is dead or hangs."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(flow_name(run), NAMESPACE))
    name_is_taken = retry_if_exception_type(ActorAlreadyExistsError)  # for some milliseconds after a death
    for attempt in Retrying(retry=name_is_taken, wait=wait_fixed(0.01), stop=stop_after_delay(10), reraise=True):
        with attempt:
            actor = as_actor(DataFlowCoordinator, flow_name(run), num_cpus=0, max_concurrency=1000)
            return actor.remote(run, settings)


def inspect(uri: str) -> dict[str, Any]:
    """Return the queues of a flow as its store has them, without disturbing whoever runs it; empty where none is."""
    for _ in range(_ATTEMPTS_TO_OPEN):
        try:
            return _report(_read(SegmentLog(uri)))
        except ArtifactError:
            continue  # perhaps compacted while we read
    return _report(_read(SegmentLog(uri)))


def _report(state: FlowState) -> dict[str, Any]:
    return {name: _report_queue(queue) for name, queue in sorted(state.queues.items())}


def _report_queue(queue: Queue) -> dict[str, Any]:
    dead = [
        {**message._asdict(), "body": f"{len(message.body)} bytes", "reason": reason}
        for message, reason in queue.dead.values()
    ]
    return {"pending": len(queue.pending), "retrying": len(queue.failures), "dead": dead}


def _read(log: SegmentLog) -> FlowState:
    payloads = log.load()
    return FlowState(record for payload in payloads for record in _unpack(payload))


def _pack(records: Sequence[Record]) -> bytes:
    return frame(msgpack.packb(records), _LIMITS)


def _unpack(payload: bytes) -> list[Record]:
    records: list[Record] = msgpack.unpackb(unframe(payload, _LIMITS), strict_map_key=False)
    return records
