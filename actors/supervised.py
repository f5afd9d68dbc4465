"""Agents as the children of a supervisor: Ray actors whose death, silence and state are seen within milliseconds.

Each life has one call that is pending all the time, in a concurrency group of its own: it fails when the actor dies,
which Ray tells within milliseconds where it is not to restart the actor. Meanwhile a thread sends heartbeats. On its
own node the kernel tells as well, and sooner where the machine is busy, since nobody else has to run for that. A silent
agent is asked by a call, and its process looked at. One that keeps failing on a node goes to another, if there is one.
"""

import asyncio
import contextlib
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, ActorUnschedulableError, RayError, RayTaskError

from actors.agent import Agent, as_actor, start_named, with_health_group
from actors.processes import Whereabouts
from phases.storage import folder_name
from recovery.children import ChildDownError, ChildSpec, RestartStrategy, UnstartableError
from recovery.heartbeats import Heartbeats, send_beats
from recovery.incarnation import Incarnation
from recovery.supervision import Pulse, SupervisionSettings
from recovery.supervisor import Supervisor

HEARTBEAT = "heartbeat"  # the name of the thread that sends them
_NODE_LABEL = "ray.io/node-id"
_REASON_SECONDS = 1.0
_LIFE = "~"  # between an agent's name and the number of its life, from the second on


class Stage:
    """Where the agents of a phase are supervised: `with Stage(run, phase) as stage:`, in a running loop."""

    def __init__(
        self,
        run: str,
        phase: str,
        settings: SupervisionSettings = SupervisionSettings(),  # noqa: B008 - immutable
    ) -> None:
        self.run, self.phase, self.settings = run, phase, settings
        self.node = ray.get_runtime_context().get_node_id()
        self.heartbeats = Heartbeats(ray.util.get_node_ip_address())
        self._lives = Counter[str]()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self.heartbeats.close()

    def child(
        self,
        name: str,
        agent: type[Agent],
        *,
        cpus: float = 0,
        gpus: float = 0,
        significant: bool = True,
        spares: int = 0,
        start_seconds: float | None = None,
    ) -> ChildSpec:
        """Return how to keep an agent; each of its lives, and each spare, holds `cpus` and `gpus`."""

        async def start(bad_nodes: frozenset[str]) -> Incarnation:
            return await self._start(name, agent, bad_nodes, {"num_cpus": cpus, "num_gpus": gpus})

        avoidable = partial(_avoidable, cpus=cpus, gpus=gpus)
        return ChildSpec(name, start, significant, spares, start_seconds, avoidable)

    def supervisor(
        self,
        name: str,
        children: Iterable[ChildSpec] = (),
        *,
        strategy: RestartStrategy = RestartStrategy.ONE_FOR_ONE,
        emit: Callable[..., None] = lambda *_, **__: None,
    ) -> Supervisor:
        """Return a supervisor that hears the heartbeats of this stage; it is not started yet."""
        return Supervisor(
            name, children, strategy=strategy, settings=self.settings, emit=emit, listen=self.heartbeats.read
        )

    async def _start(
        self, name: str, agent: type[Agent], bad_nodes: frozenset[str], resources: dict[str, float]
    ) -> Incarnation:
        self._lives[name] += 1
        life = self._lives[name]
        actor = as_actor(
            _supervised(agent),
            f"{folder_name(self.run)}/{self.phase}/{name}" + (f"{_LIFE}{life}" if life > 1 else ""),
            concurrency_groups={"health": 2, "pulse": 1},
            **resources,
            **_keep_away(bad_nodes),
        )
        handle = await asyncio.to_thread(start_named, actor, self.run, self.phase, name)
        process = AgentProcess(handle, self)
        try:
            await process.ready()
        except BaseException as error:
            await process.kill()
            if isinstance(error, ActorDiedError) and error.actor_init_failed:
                reason = str(error).strip().splitlines()[-1]
                raise UnstartableError(f"{agent.__name__} cannot be made: {reason}") from error
            raise
        return process


class ProcessEndedError(ProcessLookupError):
    """The kernel has told the end of a process; Ray tells why a little later, by the failure of the sentinel call."""

    def __init__(self, message: str, sentinel: "asyncio.Future[Any]") -> None:
        super().__init__(message)
        self.sentinel = sentinel


async def ending(error: Exception) -> Exception:
    """Return what Ray says of the end of an agent, e.g. that it was out of memory; `error` itself where it is another.

    It is given a second to say so.
    """
    if not isinstance(error, ChildDownError):
        return error
    cause = error.__cause__
    if isinstance(cause, ProcessEndedError):
        await asyncio.wait({cause.sentinel}, timeout=_REASON_SECONDS)
        cause = cause.sentinel.exception() if cause.sentinel.done() else None
    return cause if isinstance(cause, RayError) else error


class AgentProcess(Incarnation):
    """One life of an agent, in a process of its own."""

    def __init__(self, handle: Any, stage: Stage) -> None:
        self.handle, self._stage = handle, stage
        self.pulse: Pulse = Pulse(stage.settings)
        self.pid = 0
        self._token = stage.heartbeats.listen(self.pulse)
        self._sentinel = self._beat()
        self._exit: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ready(self) -> None:
        """Wait until it answers. Raises `ActorDiedError` where its constructor does not succeed."""
        self.pid, self.node = await self.handle.whereabouts.remote()
        self.pulse.seen(0)
        if self.node == self._stage.node:
            self._exit = _exit_of(self.pid)

    def invoke(self, method: str, /, *arguments: Any, **options: Any) -> Awaitable[Any]:
        """Call one of its methods; of one with several results, wait for the last and return the first's reference."""
        answer = getattr(self.handle, method).remote(*arguments, **options)
        return _first_after_last(answer) if isinstance(answer, list) else _future(answer)

    async def death(self) -> BaseException:
        """Wait for its end, by whichever tells first; an interrupted connection is none."""
        try:
            while True:
                ends: set[asyncio.Future[Any]] = {self._sentinel, self._exit}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if self._exit.done():
                    return ProcessEndedError(f"process {self.pid} has ended", self._sentinel)
                error = self._sentinel.exception()
                if not isinstance(error, ActorUnavailableError):
                    return error or ProcessLookupError("its sentinel call returned")
                await asyncio.sleep(self._stage.settings.beat_seconds)
                self._sentinel = self._beat()
        finally:
            self._exit.cancel()
            self._stage.heartbeats.forget(self._token)

    def is_death(self, error: BaseException) -> bool:
        """Say whether this actor is dead, and not one that it has called."""
        return isinstance(error, ActorDiedError | ActorUnschedulableError) and not isinstance(error, RayTaskError)

    async def ask(self) -> int:
        """Return the counter of progress, by a call."""
        beats: int = (await self.handle.progress.remote()).beats
        return beats

    async def frozen(self) -> bool:
        """Look at the process; on another node, by a task there."""
        process = Whereabouts(self.pid, self.node)
        return process.stopped() if self.node == self._stage.node else await asyncio.to_thread(process.stopped)

    async def snapshot(self) -> Any:
        """Return what `Agent.snapshot` does."""
        return await self.handle.give_state.remote()

    async def restore(self, snapshot: Any) -> None:
        """Have the agent take over a snapshot."""
        await self.handle.take_state.remote(snapshot)
        self.pulse.seen(self.pulse.beats)

    async def kill(self) -> None:
        """Kill it; this works on a stopped process, too."""
        self._stage.heartbeats.forget(self._token)
        with contextlib.suppress(RayError):
            ray.kill(self.handle)

    def _beat(self) -> "asyncio.Future[None]":
        address, seconds = self._stage.heartbeats.address, self._stage.settings.beat_seconds
        sentinel = _future(self.handle.beat.remote(address, self._token, seconds))
        sentinel.add_done_callback(
            lambda ended: ended.cancelled() or ended.exception()
        )  # it may come when nobody waits
        return sentinel


def present_lives(names: Iterable[str]) -> dict[str, str]:
    """Return agent -> the name of its present life, of the names of all that live.

    Lives are numbered as they are started, and spares are used in that order: the present one has the least number.
    """
    present: dict[str, str] = {}
    for name in sorted(names, key=lambda name: int(name.partition(_LIFE)[2] or 1), reverse=True):
        present[name.partition(_LIFE)[0]] = name
    return present


def _supervised(agent: type[Agent]) -> type[Agent]:
    """Return a subclass that sends heartbeats, and that is asked about itself beside its work."""

    async def beat(self: Agent, address: tuple[str, int], token: bytes, seconds: float) -> None:
        stop = threading.Event()
        sending = (address, token, seconds, lambda: self._progress.beats, stop)
        threading.Thread(target=send_beats, args=sending, daemon=True, name=HEARTBEAT).start()
        try:
            await asyncio.Event().wait()
        finally:
            stop.set()

    async def whereabouts(self: Agent) -> tuple[int, str]:
        return os.getpid(), ray.get_runtime_context().get_node_id()

    async def give_state(self: Agent) -> dict[str, Any]:
        return self.snapshot()

    async def take_state(self: Agent, snapshot: dict[str, Any]) -> None:
        self.restore(snapshot)

    members = {
        "beat": ray.method(concurrency_group="pulse")(beat),
        "whereabouts": ray.method(concurrency_group="health")(whereabouts),
        "give_state": ray.method(concurrency_group="health")(give_state),
        "take_state": ray.method(concurrency_group="health")(take_state),
        "__module__": agent.__module__,
    }
    return type(agent.__name__, (with_health_group(agent),), members)


def _avoidable(nodes: frozenset[str], cpus: float, gpus: float) -> frozenset[str]:
    """Return the nodes if others live that are large enough, else none."""
    for node in ray.nodes():
        size = node["Resources"]
        fits = size.get("CPU", 0) >= cpus and size.get("GPU", 0) >= gpus
        if node["Alive"] and fits and node["NodeID"] not in nodes:
            return nodes
    return frozenset()


def _keep_away(nodes: frozenset[str]) -> dict[str, Any]:
    """Return the options of an actor that goes to other nodes."""
    return {"label_selector": {_NODE_LABEL: f"!in({','.join(sorted(nodes))})"}} if nodes else {}


def _exit_of(pid: int) -> "asyncio.Future[None]":
    """Return what is done when a process of this machine ends; never, where the kernel cannot tell (Linux can)."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def close(_: object) -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)

    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.pidfd_open(pid)
        loop.add_reader(descriptor, end)
        ended.add_done_callback(close)
    return ended


def _future(reference: Any) -> "asyncio.Future[Any]":
    return asyncio.wrap_future(reference.future())


async def _first_after_last(references: list[Any]) -> Any:
    try:
        await references[-1]
    except RayError:
        await references[0]  # it has failed, too, and Ray logs failures that nobody looks at
        raise
    return references[0]
