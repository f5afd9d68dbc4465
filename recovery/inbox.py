"""The receiving side of messages that may come twice: what was handled and what came of it are one atomic record.

A receiver's inbox remembers the offsets that it has handled, as ranges, so that memory does not grow with messages.
Handling happens before the record and may happen again after a crash; its effect is the record, and that is there once:
the record is a segment that is put by conditional create, also when two incarnations of the receiver run at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgpack

from recovery.commits import FencedError
from recovery.intervals import Intervals
from recovery.segments import Flags, SegmentLog
from recovery.serialization import Limits, frame, unframe

_LIMITS = Limits(max_bytes=1 << 30)  # of our own records, whose parts were checked before


class Message(NamedTuple):
    """One message to one receiver. `offset` numbers the receiver's messages, `number` those of the source."""

    offset: int
    topic: str
    source: str
    number: int
    priority: int
    body: bytes


@dataclass(frozen=True)
class Delivery:
    """Messages that a receiver holds until it sends the receipt, or for so long that they are given out again."""

    id: str
    messages: list[Message]


@dataclass(frozen=True)
class Receipt:
    """Everything in a delivery is done but what failed: offset -> why."""

    delivery: str
    failed: dict[int, str] = field(default_factory=dict)


class Inbox:
    """The inbox of one receiver below `uri`, as of the last commit that it has seen."""

    def __init__(self, uri: str) -> None:
        self._log = SegmentLog(uri)
        self._handled = Intervals()
        self._reload()

    def fresh(self, messages: Iterable[Message]) -> list[Message]:
        """Return the messages that are not handled yet."""
        return [message for message in messages if message.offset not in self._handled]

    def commit(self, effects: Mapping[int, bytes]) -> list[int]:
        """Record offset -> effect, and return the offsets whose effects are now the recorded ones.

        The others were committed before by another incarnation of this receiver, and their effects are dropped.
        """
        while fresh := {offset: effect for offset, effect in effects.items() if offset not in self._handled}:
            handled = Intervals(self._handled.pairs())
            for start, stop in Intervals.of(fresh).pairs():
                handled.add(start, stop)
            record = msgpack.packb([handled.pairs(), list(fresh.items())])
            try:
                self._log.append(frame(record, _LIMITS), Flags.SNAPSHOT)
            except FencedError:
                self._reload()
                continue
            self._handled = handled
            return list(fresh)
        return []

    def handle(self, delivery: Delivery, handler: Callable[[Message], bytes]) -> Receipt:
        """Handle what is fresh, record the effects that `handler` returns, and return the receipt.

        A message for which `handler` raises is failed; what `commit` raises is raised.
        """
        effects, failed = dict[int, bytes](), dict[int, str]()
        for message in self.fresh(delivery.messages):
            try:
                effects[message.offset] = handler(message)
            except Exception as error:
                failed[message.offset] = f"{type(error).__name__}: {error}"
        self.commit(effects)
        return Receipt(delivery.id, failed)

    def __len__(self) -> int:
        return len(self._handled)

    def effects(self) -> Iterator[tuple[int, bytes]]:
        """Yield offset and effect of everything that was ever handled, in the order of the commits."""
        for number in self._log.numbers():
            yield from _unpack(self._log.read(number).payload)[1]

    def _reload(self) -> None:
        payloads = self._log.load()
        self._handled = Intervals(_unpack(payloads[-1])[0] if payloads else ())


def _unpack(payload: bytes) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, bytes], ...]]:
    handled, effects = msgpack.unpackb(unframe(payload, _LIMITS), use_list=False)
    return handled, effects
