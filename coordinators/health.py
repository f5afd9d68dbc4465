"""The health monitor of a run: an actor beside the pipeline that looks at nodes, agents and queues, and judges trends.

It asks each agent for its `health` in a concurrency group of its own, each node through a probe that lives there, and
the data flow for its queues; the pipeline feeds it the events of the journal. What it finds is in `health.json`
(the newest, atomic), in `health.jsonl` (a line now and then, rotated) and in Ray's metrics. New alerts go back to the
pipeline, which journals them. A monitor that fails is replaced, and the run never waits for one.
"""

import asyncio
import json
import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import psutil
import ray
from ray._common.utils import get_system_memory  # Ray's own view of memory, which knows of containers
from ray._private.utils import get_used_memory
from ray.dashboard.modules.reporter.gpu_providers import GpuMetricProvider
from ray.exceptions import RayError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.agent import NAMESPACE, as_actor, flow_name, start_named
from actors.metrics import HealthGauges
from actors.supervised import present_lives
from phases import storage
from recovery.health import ENDED, Health, HealthSettings, agent_key

NEWEST, HISTORY, OLDER = "health.json", "health.jsonl", "health.1.jsonl"
_HISTORY_SECONDS = 30.0
_HISTORY_BYTES = 1 << 20  # and as much again in the older file
_FEED_SECONDS = 1.0
_FEED_KEPT = 10_000
_PATIENCE_SECONDS, _START_SECONDS = 30.0, 300.0  # a worker of Ray starts slowly on a busy machine
_LONGEST_PAUSE_SECONDS = 60.0
_SLICES = 10
_log = logging.getLogger(__name__)

Timed = tuple[float, str, dict[str, Any]]  # when, kind and data of an event


def newest_report(run: str) -> dict[str, Any]:
    """Return the newest report on a run's health, nothing before there is one."""
    path = storage.join(run, NEWEST)
    if not storage.exists(path):
        return {}
    report: dict[str, Any] = storage.read_json(path)
    return report


class NodeProbe:
    """Measures the node that it is on. `paths` are folders whose disks matter, where they are there."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self._paths = [*paths, tempfile.gettempdir()]
        self._gpus = GpuMetricProvider()
        psutil.cpu_percent()  # the next call tells the share since this one

    def stats(self) -> dict[str, Any]:
        """Return CPU (percent), memory and disks (bytes), and GPUs (percent and bytes)."""
        total = int(get_system_memory())
        return {
            "cpu_percent": psutil.cpu_percent(),
            "cpus": psutil.cpu_count(),
            "load": os.getloadavg()[0],
            "memory": {"used": min(int(get_used_memory()), total), "total": total},
            "disks": {path: _disk(path) for path in self._disks()},
            "gpus": [
                {
                    "name": gpu["name"],
                    "percent": gpu["utilization_gpu"],
                    "used": gpu["memory_used"] << 20,
                    "total": gpu["memory_total"] << 20,
                }
                for gpu in self._gpus.get_gpu_usage()
            ],
        }

    def _disks(self) -> Iterable[str]:
        """Return one path for each disk."""
        return {os.stat(path).st_dev: path for path in reversed(self._paths) if os.path.isdir(path)}.values()


def _disk(path: str) -> dict[str, int]:
    usage = psutil.disk_usage(path)
    return {"free": usage.free, "total": usage.total}


class PipelineHealthMonitor:
    """Watches the run at `run` until it is killed."""

    def __init__(self, run: str, settings: HealthSettings) -> None:
        self.run_uri, self.settings = run, settings
        self.health = Health(settings, time.time())
        self._paths = [run.removeprefix("file://")] if storage.is_local(run) else []
        self._node = ray.get_runtime_context().get_node_id()
        self._here = NodeProbe(self._paths)
        self._gauges = HealthGauges(storage.folder_name(run))
        self._measured: dict[str, dict[str, Any]] = {}  # by node
        self._handles: dict[str, Any] = {}  # of agents and of probes of other nodes
        self._calls: dict[str, asyncio.Future[Any]] = {}  # those that are not answered yet, one per handle
        self._fresh = list[dict[str, Any]]()
        self._history = _History(run)
        self._turn = asyncio.Lock()

    async def observe(self, events: Sequence[Timed]) -> list[dict[str, Any]]:
        """Take events of the run and return the alerts that are new since the last call."""
        for at, kind, data in events:
            self.health.on_event(kind, data, at)
        fresh, self._fresh = self._fresh, []
        return fresh

    async def watch(self) -> None:
        """Look, judge and write, for ever."""
        while True:
            try:
                await self.look()
            except Exception as error:  # whatever it is, the next look may be better
                _log.warning("the health of %s could not be looked at: %s", self.run_uri, error)
            await asyncio.sleep(self.settings.interval_seconds)

    async def look(self) -> dict[str, Any]:
        """Look at everything once, and return the report that is written."""
        async with self._turn:
            agents, nodes = await asyncio.to_thread(self._find)
            await self._ask(dict.fromkeys(agents, "health") | dict.fromkeys(self._probed(nodes), "stats"))
            now = time.time()
            self.health.keep_agents(agents)
            for agent in agents | self.health.expected():
                self.health.on_heartbeat(agent, now, self._answer(agent))
            for node, identity in nodes.items():
                if stats := self._here.stats() if identity == self._node else self._answer(node):
                    self._measured[node] = stats
            self._measured = {node: stats for node, stats in self._measured.items() if node in nodes}
            self.health.on_nodes(self._measured, now)
            await self._look_at_queues()
            self._fresh += [vars(alert) for alert in self.health.judge(now)]
            report = self.health.report(now)
            self._gauges.set(report)
            await asyncio.to_thread(self._history.write, report)
            return report

    def _find(self) -> tuple[set[str], dict[str, str]]:
        """Look up the agents of the run, and the nodes by name with their ids, and forget what is gone."""
        prefix = f"{storage.folder_name(self.run_uri)}/"
        named = [actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE]
        lives = present_lives(name.removeprefix(prefix) for name in named if name.startswith(prefix))
        agents = {name for name in lives if "/" in name}
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = {f"{node['NodeManagerAddress']} {node['NodeID'][:6]}": str(node["NodeID"]) for node in alive}
        for name in agents:
            with suppress(ValueError):  # it has ended in the meantime
                self._know(name, ray.get_actor(prefix + lives[name], NAMESPACE))
        for name in self._probed(nodes) - self._handles.keys():
            there = NodeAffinitySchedulingStrategy(nodes[name], soft=False)
            probe: Any = ray.remote(NodeProbe)
            self._handles[name] = probe.options(num_cpus=0, scheduling_strategy=there).remote(self._paths)
        for name in self._handles.keys() - agents - nodes.keys():
            self._forget(name)
        return agents & self._handles.keys(), nodes

    def _probed(self, nodes: Mapping[str, str]) -> set[str]:
        """Return the names of the nodes that need a probe: all but this one."""
        return {name for name, identity in nodes.items() if identity != self._node}

    def _know(self, name: str, handle: Any) -> None:
        """Take an agent's handle; that of an earlier incarnation, with what it was asked, counts no more."""
        if name not in self._handles or self._handles[name]._actor_id != handle._actor_id:
            self._forget(name)
            self._handles[name] = handle

    def _forget(self, name: str) -> None:
        self._handles.pop(name, None)
        self._calls.pop(name, None)

    async def _ask(self, methods: Mapping[str, str]) -> None:
        """Call everybody who has answered the last call, and wait a little for the answers."""
        for name, method in methods.items():
            if name not in self._calls and hasattr(self._handles[name], method):
                self._calls[name] = asyncio.ensure_future(getattr(self._handles[name], method).remote())
        waiting: set[asyncio.Future[Any]] = set(self._calls.values())
        for _ in range(_SLICES):  # what this process itself is late by counts as one of them, however long it is
            if waiting:
                _, waiting = await asyncio.wait(waiting, timeout=self.settings.answer_seconds / _SLICES)

    def _answer(self, name: str) -> dict[str, Any] | None:
        """Return what was answered, None where nothing was; a handle that failed is looked up again."""
        call = self._calls.get(name)
        if call is None or not call.done():
            return None
        del self._calls[name]
        if call.exception() is not None:
            self._forget(name)
            return None
        answer: dict[str, Any] = call.result()
        return answer

    async def _look_at_queues(self) -> None:
        """Ask the data flow of the run, if there is one."""
        with suppress(ValueError, RayError, TimeoutError):
            flow = ray.get_actor(flow_name(self.run_uri), NAMESPACE)
            self.health.on_queues(await asyncio.wait_for(flow.status.remote(), self.settings.answer_seconds))


class _History:
    """The files of a run that hold its health."""

    def __init__(self, run: str) -> None:
        self._newest, self._lines, self._older = (storage.join(run, name) for name in (NEWEST, HISTORY, OLDER))
        self._bytes = len(storage.read_bytes(self._lines)) if storage.exists(self._lines) else 0
        self._due = 0.0

    def write(self, report: Mapping[str, Any]) -> None:
        """Write the newest report, and a line of history where one is due."""
        storage.write_json(self._newest, report)
        if report["time"] < self._due:
            return
        line = json.dumps(report)
        if self._bytes + len(line) >= _HISTORY_BYTES:
            storage.write_bytes(self._older, storage.read_bytes(self._lines))
            storage.remove(self._lines)
            self._bytes = 0
        storage.append_line(self._lines, line)
        self._bytes, self._due = self._bytes + len(line) + 1, report["time"] + _HISTORY_SECONDS


class HealthFeed:
    """Keeps a monitor alive and fed while a run goes on; an async context manager.

    `emit(kind, **data)` is given the alerts. Whatever goes wrong here is logged and nothing more.
    """

    def __init__(self, run: str, settings: HealthSettings, emit: Callable[..., None]) -> None:
        self.run_uri, self.settings, self._emit = run, settings, emit
        self._events = deque[Timed](maxlen=_FEED_KEPT)
        self._under_way: dict[str, Timed] = {}  # by agent, for the next monitor
        self._monitor: Any = None
        self._answered = False
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._pump = asyncio.create_task(self._feed())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._pump is not None
        self._pump.cancel()
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                if self._answered:
                    await self._exchange()
                    await self._monitor.look.remote()
        except Exception as error:  # whatever it is, the run has ended as it has
            _log.warning("the last look at the health of %s failed: %s", self.run_uri, error)
        self._dismiss()

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take an event of the run."""
        event = (time.time(), kind, dict(data))
        self._events.append(event)
        if kind == "task_started":
            self._under_way[agent_key(data["phase"], data["agent"])] = event
        elif kind in ENDED:
            self._under_way.pop(agent_key(data["phase"], data["agent"]), None)

    async def _feed(self) -> None:
        pause = _FEED_SECONDS
        while True:
            try:
                if self._monitor is None:
                    self._monitor = await asyncio.to_thread(spawn_monitor, self.run_uri, self.settings)
                    self._events.extendleft(event for event in self._under_way.values() if event not in self._events)
                await self._exchange()
                pause = _FEED_SECONDS
            except Exception as error:  # whatever it is, the run must not end for it
                _log.warning("the health monitor of %s failed, another one is started: %s", self.run_uri, error)
                self._dismiss()
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def _exchange(self) -> None:
        """Hand over the events and take the alerts."""
        events = [self._events.popleft() for _ in range(len(self._events))]
        patience = _PATIENCE_SECONDS if self._answered else _START_SECONDS
        alerts = await asyncio.wait_for(self._monitor.observe.remote(events), patience)
        self._answered = True
        for alert in alerts:
            self._emit("alert", **alert)

    def _dismiss(self) -> None:
        monitor, self._monitor, self._answered = self._monitor, None, False
        if monitor is not None:
            with suppress(RayError):
                ray.kill(monitor)


def spawn_monitor(run: str, settings: HealthSettings) -> Any:
    """Start the monitor as the Ray actor `<run>/health`, and its watch."""
    actor = as_actor(PipelineHealthMonitor, f"{storage.folder_name(run)}/health", num_cpus=0)
    monitor = start_named(actor, run, settings)
    monitor.watch.remote()
    return monitor
