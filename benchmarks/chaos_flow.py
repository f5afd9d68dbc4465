"""Messages under faults: dropped, doubled, delayed, arrived without an answer, and a flow that is killed meanwhile.

Two sources publish to a receiver through the run's real flow. The faults strike at numbered calls of each party, and
the effects that the receiver has recorded are counted afterwards.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from actors.flow import FlowClient, Publisher
from benchmarks.harness import local_ray
from coordinators.dataflow import spawn_flow
from coordinators.deliveries import FlowSettings
from recovery.faults import Fault, FaultLog, Fired, Kind, Point, draw
from recovery.inbox import Inbox, Message

_SOURCES = ("a", "b")
_PUBLICATIONS = 12  # of each source
_BODIES = 20  # in a publication
_PULLS = 4  # that faults may strike; there are more
_DELAY_SECONDS = 0.5
_LIMIT_SECONDS = 120
_SETTINGS = FlowSettings(batch=32, receipt_seconds=5.0)
_KINDS = (Kind.LOSE_ANSWER, Kind.DROP, Kind.KILL, Kind.DOUBLE, Kind.DELAY)


class MessageFaults:
    """Counts calls and says which one is struck; `kill_flow` is what a kill does."""

    def __init__(self, log: FaultLog, flow: "Flow") -> None:
        self.log, self.flow = log, flow
        self._faults = {(fault.point, fault.hit): fault for fault in log.plan()[1]}
        self._calls = Counter[tuple[str, str]]()

    def due(self, method: str, party: str) -> Kind | None:
        """Count a call and return what happens to it."""
        number = self._calls[method, party]
        self._calls[method, party] += 1
        point = Point(method, f"{party}/{number}")
        if (point, 1) not in self._faults:
            return None
        return self._faults[point, self.log.count(point)].kind


class Flow:
    """The flow's actor, which is started again when it was killed."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.handle = spawn_flow(run, _SETTINGS)

    async def kill(self) -> None:
        """Kill its process and start the next."""
        os.kill(await self.handle.__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)
        self.handle = spawn_flow(self.run, _SETTINGS)


class FaultyClient(FlowClient):
    """A client of one party whose calls meet with faults. What is dropped is called again, as a client does."""

    def __init__(self, run: str, party: str, faults: MessageFaults) -> None:
        super().__init__(run)
        self.party, self.faults = party, faults

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call as `FlowClient` does, with what is planned."""
        kind = self.faults.due(method, self.party)
        match kind:
            case Kind.DROP | Kind.DELAY:
                await asyncio.sleep(_DELAY_SECONDS)
            case Kind.KILL:
                await self.faults.flow.kill()
            case Kind.LOSE_ANSWER:
                await super().call(method, *arguments, **options)
            case Kind.DOUBLE:
                twins = (super(FaultyClient, self).call(method, *arguments, **options) for _ in range(2))
                return (await asyncio.gather(*twins))[0]
        return await super().call(method, *arguments, **options)


def plan(seed: int, count: int) -> list[Fault]:
    """Return `count` faults of messages, each kind as often as the others."""
    points = [Point("publish", f"{source}/{number}") for source in _SOURCES for number in range(_PUBLICATIONS)]
    points += [Point("pull", f"receiver/{number}") for number in range(_PULLS)]
    return draw(seed, points, [(_KINDS[number % len(_KINDS)], lambda _: True) for number in range(count)])


def carry(folder: Path, faults: list[Fault]) -> tuple[list[Fired], int, int, float]:
    """Carry messages under the plan; return what fired, how many are lost and handled twice, and the seconds."""
    log = FaultLog(folder / "faults")
    log.write_plan(str(folder / "run"), faults)
    with local_ray(1, 80 << 20):
        start = time.monotonic()
        asyncio.run(asyncio.wait_for(_carry(str(folder / "run"), log), _LIMIT_SECONDS))
    effects = Counter(effect for _, effect in Inbox(_inbox(str(folder / "run"))).effects())
    total = len(_SOURCES) * _PUBLICATIONS * _BODIES
    return log.fired(), total - len(effects), sum(effects.values()) - len(effects), time.monotonic() - start


async def _carry(run: str, log: FaultLog) -> None:
    faults = MessageFaults(log, Flow(run))
    receiving, stopped = FaultyClient(run, "receiver", faults), asyncio.Event()
    await receiving.call("subscribe", "topic", "receiver")
    inbox = Inbox(_inbox(run))
    receiver = asyncio.create_task(receiving.receive("receiver", inbox, _effect, stopped))
    await asyncio.gather(*(_publish(FaultyClient(run, source, faults), source) for source in _SOURCES))
    while len(inbox) < len(_SOURCES) * _PUBLICATIONS * _BODIES and not receiver.done():
        await asyncio.sleep(0.02)
    stopped.set()
    await receiver


async def _publish(client: FlowClient, source: str) -> None:
    publisher = Publisher(client, source)
    for number in range(_PUBLICATIONS):
        await publisher.publish("topic", [b"%d" % (number * _BODIES + body) for body in range(_BODIES)])


def _effect(message: Message) -> bytes:
    return f"{message.source}:{message.number}".encode()


def _inbox(run: str) -> str:
    return str(Path(run, "inbox"))
