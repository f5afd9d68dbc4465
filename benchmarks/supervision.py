"""Supervision: how soon deaths and hangs are known, how soon there is a successor, and what watching costs.

Agents are killed and stopped from outside, by pid. What is supervised takes turns with what it is compared with: Ray's
own restart, a new actor that loads the same state, a bare call of the same actor. False alarms are counted while the
machine is given several times the work that it has cores for. The share of a core that heartbeats take is the CPU time
of the threads that send them, as the kernel counts it, and of the one that receives and judges them.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray

from actors.agent import NAMESPACE, Agent, as_actor
from actors.supervised import HEARTBEAT, Stage
from benchmarks.harness import Baseline, Figure, local_ray, progress
from benchmarks.stale import stale_commits
from phases.storage import folder_name
from phases.timing import bootstrap
from recovery.children import ChildDownError, ChildSpec
from recovery.supervision import SupervisionSettings
from recovery.supervisor import Supervisor

STATE_MB = 25
_SETTINGS = SupervisionSettings(restarts=10**6)
_PATIENCE = 120.0  # seconds for whatever has to happen
_LOAD = 4  # processes that never rest, per core


def run(quick: bool) -> list[Figure]:
    """Measure all figures of the supervision."""
    with TemporaryDirectory() as folder:
        state = Path(folder, "state.npy")
        np.save(state, np.arange(STATE_MB << 18, dtype=np.float32))
        bench = _Bench(folder, str(state))
        with local_ray(2, 160 << 20):
            figures = [
                *asyncio.run(bench.kills(8 if quick else 60, baselines=2 if quick else 10)),
                asyncio.run(bench.cold(3 if quick else 9)),
                asyncio.run(bench.hangs(3 if quick else 15)),
                asyncio.run(bench.call_overhead(5 if quick else 20)),
                asyncio.run(bench.heartbeats(10 if quick else 50, seconds=10 if quick else 60)),
                asyncio.run(bench.false_alarms(30 if quick else 600)),
            ]
        return [*figures, stale_commits(str(Path(folder, "stale")), seconds=5 if quick else 30)]


class Subject(Agent):
    """Has a state to take over, which is in a file; says who it is; rests or works until it is killed."""

    def __init__(self, run: str, phase: str, name: str) -> None:
        super().__init__(run, phase, name)
        self.state, self.values = "", np.zeros(1)

    async def whoami(self) -> tuple[int, float]:
        """Return its pid and the last number of its state."""
        return os.getpid(), float(self.values[-1])

    async def noop(self) -> None:
        """Do nothing."""

    async def rest(self) -> None:
        """Be called, for ever."""
        await asyncio.Event().wait()

    async def work(self) -> None:
        """Compute for ever, in a thread, half in Python and half in NumPy."""
        await asyncio.to_thread(self._toil)

    async def load(self, state: str) -> None:
        """Read its state from a file."""
        self.state, self.values = state, np.load(state)
        self.report("load", 1, 1, {})

    async def threads(self) -> dict[str, int]:
        """Return the kernel's number of each thread."""
        return {thread.name: thread.native_id or 0 for thread in threading.enumerate()}

    def snapshot(self) -> dict[str, Any]:
        """Return where its state is."""
        return super().snapshot() | {"state": self.state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Read the state again."""
        super().restore({"progress": snapshot["progress"]})
        if snapshot["state"]:
            self.state, self.values = snapshot["state"], np.load(snapshot["state"])

    def _toil(self) -> None:
        matrix, step = np.random.default_rng(0).random((256, 256)), 0
        while True:
            step += 1
            self.report("toil", step, 0, {"sum": float(sum(range(100_000)))})
            np.linalg.inv(matrix @ matrix + np.eye(256))


class _Events:
    """What a supervisor told, with the time at which it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str, dict[str, Any]]] = []

    def emit(self, kind: str, **data: Any) -> None:
        self.seen.append((time.perf_counter(), kind, data))

    def of(self, kind: str) -> list[float]:
        return [at for at, name, _ in self.seen if name == kind]


class _Bench:
    """The measurements, one after the other on one cluster."""

    def __init__(self, folder: str, state: str) -> None:
        self.folder, self.state = folder, state

    @contextlib.asynccontextmanager
    async def _supervised(self, names: Sequence[str], spares: int = 0) -> Any:
        """Give a supervisor of subjects that have loaded their state, and its events."""
        events = _Events()
        with Stage(self.folder, "bench", _SETTINGS) as stage:
            children: list[ChildSpec] = [stage.child(name, Subject, spares=spares) for name in names]
            supervisor = await stage.supervisor("bench", children, emit=events.emit).start()
            yield supervisor, events
            await supervisor.stop()

    async def _with_state(self, supervisor: Supervisor) -> None:
        """Load the state and wait until the supervisor has the snapshot that says where it is."""
        await supervisor.call("a", "load", self.state, timeout=_PATIENCE)
        while not (supervisor.snapshot_of("a") or {}).get("state"):
            await asyncio.sleep(0.05)

    async def kills(self, kills: int, baselines: int) -> list[Figure]:
        """Time from SIGKILL until the failure is known, and until a spare has answered with the state."""
        known, answered, bare = list[float](), list[float](), list[float]()
        async with self._supervised("a", spares=1) as (supervisor, events):
            await self._with_state(supervisor)
            for number in range(kills):
                while supervisor.spares_of("a") < 1:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
                start, answer = await _kill(supervisor)
                known.append((events.of("child_down")[-1] - start) * 1e3)
                answered.append((answer - start) * 1e3)
                if len(bare) < baselines * (number + 1) // kills:
                    bare.append(await _bare_kill() * 1e3)
                progress(f"kill {number + 1}/{kills}: known {known[-1]:.1f} ms, spare answered {answered[-1]:.1f} ms")
        restart = Baseline(what="ms by a call of an actor that Ray restarts, median", value=statistics.median(bare))
        low, high = bootstrap(known, _p95)
        detect = {"known": known, "bare": bare}
        return [
            _figure("detect_kill_ms_p95", _p95([known])[0], "ms", 25, restart, detect, low, high),
            _figure("mttr_spare_ms", statistics.median(answered), "ms", 100, None, {"answered": answered}),
        ]

    async def cold(self, rounds: int) -> Figure:
        """Compare a cold successor's first answer, counted from SIGKILL, with a new actor that loads the same state."""
        ours, bare = list[float](), list[float]()
        async with self._supervised("a") as (supervisor, _):
            await self._with_state(supervisor)
            for number in range(rounds):
                await asyncio.sleep(3)
                start, answer = await _kill(supervisor)
                ours.append(answer - start)
                await asyncio.sleep(3)
                bare.append(await self._bare_start())
                progress(f"cold start {number + 1}/{rounds}: {ours[-1]:.2f} s, bare {bare[-1]:.2f} s")
        ratios = [candidate / baseline for candidate, baseline in zip(ours, bare, strict=True)]
        low, high = bootstrap(ratios)
        baseline = Baseline(what="s, a bare new actor and loading, median", value=statistics.median(bare))
        raw = {"ours": ours, "bare": bare}
        return _figure("mttr_cold_ratio", statistics.median(ratios), "x", 1.3, baseline, raw, low, high)

    async def _bare_start(self) -> float:
        start = time.perf_counter()
        actor = as_actor(Subject, f"bare-{start}").remote(self.folder, "bench", "bare")
        await actor.load.remote(self.state)
        await actor.whoami.remote()
        seconds = time.perf_counter() - start
        ray.kill(actor)
        return seconds

    async def hangs(self, stops: int) -> Figure:
        """Time from SIGSTOP until the agent is given up."""
        noticed = list[float]()
        async with self._supervised("a") as (supervisor, events):
            for number in range(stops):
                pid, _ = await supervisor.call("a", "whoami", timeout=_PATIENCE)
                await asyncio.sleep(1 + number / stops * _SETTINGS.beat_seconds)  # at all phases of the beat
                start = time.perf_counter()
                os.kill(pid, signal.SIGSTOP)
                while len(events.of("child_down")) <= number:
                    await asyncio.sleep(0.005)
                noticed.append(events.of("child_down")[-1] - start)
                progress(f"stop {number + 1}/{stops}: noticed after {noticed[-1]:.2f} s")
        return _figure("detect_hang_s", max(noticed), "s, the longest", 1.5, None, {"noticed": noticed})

    async def call_overhead(self, rounds: int, calls: int = 300) -> Figure:
        """Compare the median time of a supervised call with a bare call of the same actor."""
        samples: dict[str, list[float]] = {"supervised": [], "bare": []}
        async with self._supervised("a") as (supervisor, _):
            handle = ray.get_actor(f"{folder_name(self.folder)}/bench/a", NAMESPACE)

            async def supervised() -> None:
                await supervisor.call("a", "noop", timeout=_PATIENCE)

            async def bare() -> None:
                await handle.noop.remote()

            for number in range(rounds + 1):
                for name, call in [("supervised", supervised), ("bare", bare)][:: 1 if number % 2 else -1]:
                    seconds = [await _timed(call) for _ in range(calls)]
                    if number:  # the first warms up
                        samples[name].append(statistics.median(seconds) * 1e3)
        ratios = [candidate / base for candidate, base in zip(samples["supervised"], samples["bare"], strict=True)]
        low, high = bootstrap(ratios)
        baseline = Baseline(what="ms, a bare call, median", value=statistics.median(samples["bare"]))
        return _figure("call_overhead", statistics.median(ratios), "x", 1.10, baseline, samples, low, high)

    async def heartbeats(self, agents: int, seconds: float) -> Figure:
        """Add up the CPU time of all threads that do nothing but send, receive and judge heartbeats."""
        names = [f"agent-{number}" for number in range(agents)]
        async with self._supervised(names) as (supervisor, _):
            senders = list[tuple[int, int]]()
            for name in names:
                pid, _ = await supervisor.call(name, "whoami", timeout=_PATIENCE)
                threads = await supervisor.call(name, "threads", timeout=_PATIENCE)
                senders.append((pid, threads[HEARTBEAT]))
            await asyncio.sleep(2)
            sent, received, start = [_cpu(*sender) for sender in senders], time.thread_time(), time.perf_counter()
            await asyncio.sleep(seconds)
            wall = time.perf_counter() - start
            sending = [(_cpu(*sender) - before) / wall for sender, before in zip(senders, sent, strict=True)]
            judging = (time.thread_time() - received) / wall
        share = (sum(sending) + judging) * 50 / agents
        progress(f"{agents} agents: {sum(sending):.4f} of a core to send, {judging:.4f} to receive and judge")
        raw = {"sending, per agent": sending, "judging, all": [judging]}
        return _figure("heartbeat_core_share", share, "of a core, for 50 agents", 0.01, None, raw)

    async def false_alarms(self, seconds: float) -> Figure:
        """Count agents that are given up although nothing happened to them, with the machine under full load."""
        names = ["a", "b", "c", "d"]
        loads = list[float]()
        async with self._supervised(names) as (supervisor, events):
            with _hogs(_LOAD * (os.cpu_count() or 1)):
                working = [asyncio.create_task(supervisor.call(name, "work", timeout=10**9)) for name in names]
                end = time.perf_counter() + seconds
                while time.perf_counter() < end:
                    await asyncio.sleep(min(10, seconds))
                    loads.append(os.getloadavg()[0])
                    silent = len(events.of("child_silent"))
                    progress(f"load {loads[-1]:.1f}: {len(events.of('child_down'))} alarms, {silent} times asked")
            alarms = len(events.of("child_down"))
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        unit = f"of {len(names)} working agents in {seconds:g} s"
        raw = {"load": loads, "silent and asked": [float(len(events.of("child_silent")))]}
        return _figure("false_alarms", alarms, unit, 0, None, raw)


async def _kill(supervisor: Supervisor) -> tuple[float, float]:
    """Kill the process of a child that is at work; return when, and when its successor has answered with the state."""
    pid, expected = await supervisor.call("a", "whoami", timeout=_PATIENCE)
    resting = asyncio.create_task(supervisor.call("a", "rest", timeout=_PATIENCE))
    await asyncio.sleep(0.1)
    start = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildDownError):
        await resting
    successor, state = await supervisor.call("a", "whoami", timeout=_PATIENCE)
    answer = time.perf_counter()
    if successor == pid or state != expected or not expected:
        raise AssertionError(f"process {pid} with state {expected} was followed by {successor} with {state}")
    return start, answer


async def _bare_kill() -> float:
    """Return the seconds until a call fails whose actor is killed and which Ray is to restart."""
    remote: Any = ray.remote
    actor = remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(Subject).remote("", "bench", "bare")
    pid, _ = await actor.whoami.remote()
    resting = actor.rest.remote()
    await asyncio.sleep(0.1)
    start = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ray.exceptions.RayActorError):
        await resting
    seconds = time.perf_counter() - start
    ray.kill(actor)
    return seconds


async def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    await call()
    return time.perf_counter() - start


def _cpu(pid: int, thread: int) -> float:
    """Return the CPU seconds of a thread, from Linux' scheduler."""
    return int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0]) / 1e9


def _p95(array: Any, axis: int = 1) -> Any:
    return np.quantile(np.asarray(array), 0.95, axis=axis)


def _figure(
    key: str,
    value: float,
    unit: str,
    goal: float,
    baseline: Baseline | None,
    raw: dict[str, list[float]],
    low: float | None = None,
    high: float | None = None,
) -> Figure:
    return Figure(
        key=key, value=value, unit=unit, better="lower", goal=goal, baseline=baseline, raw=raw, low=low, high=high
    )


@contextlib.contextmanager
def _hogs(count: int) -> Iterator[None]:
    """Run processes that never rest."""
    context = multiprocessing.get_context("spawn")
    hogs = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for hog in hogs:
        hog.start()
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.join()


def _spin() -> None:
    while True:
        sum(range(1_000_000))
