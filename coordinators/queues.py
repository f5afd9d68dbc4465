"""What a data flow remembers: topics, one queue per receiver, and what each source has published.

It changes only by records (plain lists), which are the same when they are first applied and when they are read back
from the log, so that a restarted flow gives every message the same offset again. Nothing here knows time, delivery or
storage. Messages of one source are numbered by it; ranges of numbers tell old from new without a set of ids.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from recovery.inbox import Message
from recovery.intervals import Intervals

Record = Sequence[Any]


@dataclass
class Queue:
    """The messages to one receiver. `failures` counts per offset; `dead` holds what is given up, and why."""

    next_offset: int = 0
    pending: dict[int, Message] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    dead: dict[int, tuple[Message, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pending) + len(self.dead)

    def add(self, messages: Sequence[tuple[str, str, int, int, bytes]]) -> list[Message]:
        """Give the messages (topic, source, number, priority, body) their offsets and return them."""
        offsets = range(self.next_offset, self.next_offset + len(messages))
        added = [Message(offset, *message) for offset, message in zip(offsets, messages, strict=True)]
        self.next_offset = offsets.stop
        self.pending.update(zip(offsets, added, strict=True))
        return added


class FlowState:
    """All queues, by `apply`."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.routes: dict[str, list[str]] = {}
        self.queues: dict[str, Queue] = {}
        self._published: dict[str, Intervals] = defaultdict(Intervals)
        for record in records:
            self.apply(record)

    def apply(self, record: Record) -> list[tuple[str, list[Message]]]:
        """Change by a record (its kind and its arguments) and return, by receiver, what became deliverable by it."""
        kind, *arguments = record
        changed: list[tuple[str, list[Message]]] = getattr(self, f"_{kind}")(*arguments)
        return changed

    def is_known(self, source: str, first: int, stop: int) -> bool:
        """Say whether the numbers [first, stop) of a source are all published."""
        return source in self._published and self._published[source].covers(first, stop)

    def next_number(self, source: str) -> int:
        """Return the number after the last that a source has published; 0 where there is none."""
        pairs = self._published[source].pairs() if source in self._published else []
        return pairs[-1][1] if pairs else 0

    def snapshot(self) -> Record:
        """Return the record that makes all this from nothing."""
        queues = {
            name: [
                queue.next_offset,
                list(queue.pending.values()),
                list(queue.failures.items()),
                list(queue.dead.values()),
            ]
            for name, queue in self.queues.items()
        }
        return ["restore", self.routes, queues, {source: seen.pairs() for source, seen in self._published.items()}]

    def _restore(
        self, routes: dict[str, list[str]], queues: dict[str, Any], published: dict[str, Any]
    ) -> list[tuple[str, list[Message]]]:
        self.routes = {topic: list(receivers) for topic, receivers in routes.items()}
        self.queues = {}
        for name, (next_offset, pending, failures, dead) in queues.items():
            self.queues[name] = queue = Queue(next_offset, failures=dict(failures))
            queue.pending = {item[0]: Message(*item) for item in pending}
            queue.dead = {item[0]: (Message(*item), reason) for item, reason in dead}
        self._published = defaultdict(Intervals, {name: Intervals(pairs) for name, pairs in published.items()})
        return [(name, list(queue.pending.values())) for name, queue in self.queues.items()]

    def _subscribe(self, topic: str, receiver: str) -> list[tuple[str, list[Message]]]:
        receivers = self.routes.setdefault(topic, [])
        if receiver not in receivers:
            receivers.append(receiver)
            self.queues.setdefault(receiver, Queue())
        return []

    def _publish(
        self, topic: str, source: str, first: int, priority: int, bodies: Sequence[bytes]
    ) -> list[tuple[str, list[Message]]]:
        fresh = list[tuple[str, str, int, int, bytes]]()
        for start, stop in self._published[source].add(first, first + len(bodies)):
            part = bodies[start - first : stop - first]
            numbers = range(start, stop)
            fresh += zip(repeat(topic), repeat(source), numbers, repeat(priority), part)
        return [(receiver, self.queues[receiver].add(fresh)) for receiver in self.routes[topic]] if fresh else []

    def _done(self, receiver: str, ranges: Sequence[tuple[int, int]]) -> list[tuple[str, list[Message]]]:
        queue = self.queues[receiver]
        for start, stop in ranges:
            for offset in range(start, stop):
                queue.pending.pop(offset, None)
                queue.failures.pop(offset, None)
        return []

    def _fail(self, receiver: str, offsets: Sequence[int]) -> list[tuple[str, list[Message]]]:
        queue = self.queues[receiver]
        for offset in offsets:
            queue.failures[offset] = queue.failures.get(offset, 0) + 1
        return [(receiver, [queue.pending[offset] for offset in offsets])]

    def _bury(self, receiver: str, offsets: Sequence[int], reason: str) -> list[tuple[str, list[Message]]]:
        queue = self.queues[receiver]
        for offset in offsets:
            queue.failures.pop(offset, None)
            queue.dead[offset] = (queue.pending.pop(offset), reason)
        return []

    def _revive(self, receiver: str, offsets: Sequence[int]) -> list[tuple[str, list[Message]]]:
        queue = self.queues[receiver]
        revived = [queue.dead.pop(offset)[0] for offset in offsets]
        queue.pending.update(zip(offsets, revived, strict=True))  # by the same offset, should one be handled already
        return [(receiver, revived)]
