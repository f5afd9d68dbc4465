"""The data flow: nothing lost and nothing handled twice under kills of all parties, and its speed against bare calls.

Publishers, receivers and the flow itself are killed with SIGKILL at seeded points of progress and started again. What
was handled is read from the receivers' inboxes afterwards. For speed, the flow takes the whole way (published durably,
de-duplicated, delivered, its effect recorded, receipt taken) in batches, and the baseline is one pipelined actor call
per message that does nothing; the two take turns.
"""

import asyncio
import contextlib
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray

from actors.flow import FlowClient, Publisher
from benchmarks.harness import Baseline, Figure, local_ray, progress
from coordinators.dataflow import flow_uri, inspect, spawn_flow
from coordinators.deliveries import FlowSettings
from phases import storage
from phases.timing import bootstrap
from recovery.inbox import Inbox, Message

RECEIVERS = ("one", "two", "three")
SOURCES = ("a", "b")
_SETTINGS = FlowSettings(batch=1000, capacity=20_000, receipt_seconds=5.0)
_PUBLISH = 100  # messages that a source publishes at once while parties are killed
_IN_FLIGHT = 8  # publications at a time when speed is measured
_BODY_BYTES = 100


def run(quick: bool) -> list[Figure]:
    """Measure `lost`, `handled_twice` and `throughput_ratio`."""
    with local_ray(2, 160 << 20), TemporaryDirectory() as folder:
        figures = _faults(str(Path(folder, "faults")), messages=5_000 if quick else 100_000, kills=6 if quick else 30)
        return [*figures, _throughput(folder, messages=20_000 if quick else 100_000, rounds=3 if quick else 5)]


class Source:
    """A process that publishes, to each receiver's topic in turn."""

    def __init__(self, run: str, source: str, messages: int) -> None:
        self.publisher, self.messages = Publisher(FlowClient(run), source), messages

    async def work(self) -> None:
        """Publish what is not published yet."""
        while (first := await self.publisher.next_number()) < self.messages:
            count = min(_PUBLISH, self.messages - first)
            bodies = [b"%d" % number for number in range(first, first + count)]
            await self.publisher.publish(RECEIVERS[first // _PUBLISH % 3], bodies)


class Receiver:
    """A process that handles a receiver's messages until it is told to stop; an effect is the message's name."""

    def __init__(self, run: str, receiver: str) -> None:
        self.client, self.receiver = FlowClient(run), receiver
        self.inbox = Inbox(_inbox_uri(run, receiver))
        self.stopped = asyncio.Event()

    async def work(self) -> None:
        """Handle messages, first of all those that an incarnation before this one held."""
        await self.client.call("release", self.receiver, "it was started again")
        await self.client.receive(self.receiver, self.inbox, _effect, self.stopped)

    async def stop(self) -> None:
        """Let `work` end after the current batch."""
        self.stopped.set()

    async def handled(self) -> int:
        """Return how many messages have had their effect."""
        return len(self.inbox)


class Sink:
    """The baseline's receiver."""

    def handle(self, body: bytes) -> None:
        """Do nothing."""


def _effect(message: Message) -> bytes:
    return f"{message.source}:{message.number}".encode()


def _inbox_uri(run: str, receiver: str) -> str:
    return storage.join(run, "inboxes", receiver)


class _Party:
    """An actor that is started again as soon as Ray says that it is dead, until its work is done."""

    def __init__(self, start: Callable[[], Any], works: bool = True) -> None:
        self._start, self._works = start, works
        self.pid = 0
        self.done = False
        self._handle: Any = None

    async def live(self) -> None:
        """Stay alive until done. What does no work of its own, the flow, is asked now and then whether it lives."""
        while not self.done:
            handle = self._handle = self._start()
            with contextlib.suppress(ray.exceptions.RayActorError):
                self.pid = await handle.__ray_call__.remote(lambda _: os.getpid())
                if self._works:
                    await handle.work.remote()
                    self.done = True
                while not self.done:
                    await handle.__ray_call__.remote(lambda _: None)
                    await asyncio.sleep(0.02)
            self.pid = 0
        ray.kill(handle)

    async def stop(self) -> None:
        """Tell it to end its work."""
        await self._handle.stop.remote()

    def kill(self) -> None:
        """Kill its process."""
        os.kill(self.pid, signal.SIGKILL)
        self.pid = 0


async def _storm(run: str, messages: int, kills: int, seed: int) -> list[str]:
    """Carry messages while parties are killed at random points of progress; return who was killed."""
    parties = {"flow": _Party(lambda: spawn_flow(run, _SETTINGS), works=False)}
    lives = [asyncio.create_task(parties["flow"].live())]
    client, total = FlowClient(run), messages * len(SOURCES)
    for receiver in RECEIVERS:
        await client.call("subscribe", receiver, receiver)
        parties[receiver] = _Party(partial(_remote(Receiver).remote, run, receiver))
    for source in SOURCES:
        parties[source] = _Party(partial(_remote(Source).remote, run, source, messages))
    lives += [asyncio.create_task(parties[name].live()) for name in (*RECEIVERS, *SOURCES)]
    rng, killed = random.Random(seed), list[str]()
    points = sorted(rng.sample(range(total), kills))
    turns = [name for _ in range(kills) for name in rng.sample(sorted(parties), len(parties))]  # nobody is left out
    while (handled := _handled(run)) < total:
        alive = [name for name, party in parties.items() if party.pid]
        if len(killed) < kills and handled >= points[len(killed)] and alive:
            killed.append(next(name for name in turns if name in alive))
            turns.remove(killed[-1])
            parties[killed[-1]].kill()
            progress(f"kill {len(killed)}/{kills} after {handled} of {total} messages: {killed[-1]}")
        await asyncio.sleep(0.02)
    for receiver in RECEIVERS:
        await parties[receiver].stop()
    await asyncio.gather(*lives[1:])
    parties["flow"].done = True
    await lives[0]
    return killed


def _handled(run: str) -> int:
    return sum(len(Inbox(_inbox_uri(run, receiver))) for receiver in RECEIVERS)


def _remote(cls: type) -> Any:
    remote: Any = ray.remote
    return remote(num_cpus=0, max_restarts=0)(cls)


def _faults(run: str, messages: int, kills: int) -> list[Figure]:
    """Count messages without an effect and effects beyond the first, over all receivers."""
    killed = asyncio.run(_storm(run, messages // len(SOURCES), kills, seed=0))
    effects = Counter[str]()
    for receiver in RECEIVERS:
        effects.update(effect.decode() for _, effect in Inbox(_inbox_uri(run, receiver)).effects())
    expected = {f"{source}:{number}" for source in SOURCES for number in range(messages // len(SOURCES))}
    dead = sum(len(queue["dead"]) for queue in inspect(flow_uri(run)).values())
    by_party = {f"kills of {name}": [float(count)] for name, count in sorted(Counter(killed).items())}
    unit = f"of {messages} messages, {kills} kills"
    lost = len(expected - set(effects))
    twice = sum(effects.values()) - len(effects)
    return [
        Figure(key="lost", value=lost, unit=unit, better="lower", goal=0, raw=by_party | {"dead": [dead]}),
        Figure(key="handled_twice", value=twice, unit=unit, better="lower", goal=0, raw=by_party),
    ]


def _throughput(folder: str, messages: int, rounds: int) -> Figure:
    """Compare messages a second through the flow with actor calls a second, in turns."""
    sink = _remote(Sink).remote()
    bare, flow = list[float](), list[float]()
    for number in range(rounds + 1):
        calls = _bare_rate(sink, messages // 10)
        carried = asyncio.run(_flow_rate(str(Path(folder, f"round-{number}")), messages))
        progress(f"round {number}: {calls:.0f} bare calls/s, {carried:.0f} messages/s")
        if number:  # the first warms up
            bare.append(calls)
            flow.append(carried)
    ratios = [carried / calls for carried, calls in zip(flow, bare, strict=True)]
    low, high = bootstrap(ratios)
    return Figure(
        key="throughput_ratio",
        value=statistics.median(ratios),
        unit="x, journalled and de-duplicated messages over bare calls",
        better="higher",
        goal=10,
        baseline=Baseline(what="pipelined bare actor calls/s", value=statistics.median(bare)),
        low=low,
        high=high,
        raw={"messages/s": flow, "calls/s": bare},
    )


def _bare_rate(sink: Any, calls: int) -> float:
    body = os.urandom(_BODY_BYTES)
    start = time.perf_counter()
    ray.get([sink.handle.remote(body) for _ in range(calls)])
    return calls / (time.perf_counter() - start)


async def _flow_rate(run: str, messages: int) -> float:
    """Return messages a second from the first publication until all effects are recorded."""
    flow, client, name = spawn_flow(run, _SETTINGS), FlowClient(run), RECEIVERS[0]
    await client.call("subscribe", name, name)
    receiver = _remote(Receiver).remote(run, name)
    working = asyncio.ensure_future(receiver.work.remote())
    await receiver.handled.remote()
    bodies = [os.urandom(_BODY_BYTES) for _ in range(_SETTINGS.batch)]
    start = time.perf_counter()
    window = asyncio.Semaphore(_IN_FLIGHT)

    async def publish(first: int) -> None:
        async with window:
            await client.publish(name, bodies, source="driver", first=first)

    await asyncio.gather(*(publish(first) for first in range(0, messages, len(bodies))))
    while await receiver.handled.remote() < messages:
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - start
    await receiver.stop.remote()
    await working
    for actor in (receiver, flow):
        ray.kill(actor)
    return messages / seconds
