"""Faults on purpose: a seeded plan, keyed to logical points of a run and never to time.

A point is (hook, step): a place in the code, and what part of the run's work is done there. The n-th time that it is
reached in the whole life of the run, over all processes and restarts, is counted by conditional create in a side
folder, and that count is also the log of what fired: so each fault fires once, and a resumed run comes to its end. The
seed decides by a pseudo-random function of (kind, point) which points of an undisturbed run get a fault.

Raising, waiting and damaging files is done here, in the process that comes by. Signals and lost nodes come from
outside: the process asks for them and waits at its point until they are carried out. Without a plan in the environment
(`FORGE_FAULTS`, a folder with `plan.json`), `hook` looks at one variable and returns.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from phases import storage
from phases.errors import ArtifactError, ForgeError, NumericalError

ENVIRONMENT = "FORGE_FAULTS"
_PATIENCE = 120.0  # seconds to wait for what has to come from outside
_POLL = 0.005


class Kind(StrEnum):
    """What happens at a point."""

    TRANSIENT = "transient"
    LOST_OBJECT = "lost_object"
    RESOURCE = "resource"
    NUMERICAL = "numerical"
    VALIDATION = "validation"
    UNKNOWN = "unknown"
    UNPICKLABLE = "unpicklable"
    DISK_FULL = "disk_full"
    TORN = "torn"  # half of a file is written, under its temporary name, and the process is killed
    CORRUPT = "corrupt"  # a byte of a folder that is complete is flipped, and the process is killed
    SLOW = "slow"
    KILL = "kill"
    STOP = "stop"
    KILL_PIPELINE = "kill_pipeline"
    KILL_DRIVER = "kill_driver"
    KILL_RAYLET = "kill_raylet"  # of the node that the process is on; the process itself may live on
    REMOVE_NODE = "remove_node"
    DROP = "drop"  # a message
    DOUBLE = "double"  # a message
    DELAY = "delay"  # a message, behind later ones
    LOSE_ANSWER = "lose_answer"  # to a message that arrived


OUTSIDE = frozenset(
    {
        Kind.TORN,
        Kind.CORRUPT,
        Kind.KILL,
        Kind.STOP,
        Kind.KILL_PIPELINE,
        Kind.KILL_DRIVER,
        Kind.KILL_RAYLET,
        Kind.REMOVE_NODE,
    }
)


class UnpicklableError(Exception):
    """Pickled well, and not read back: its constructor takes no positional arguments."""

    def __init__(self, *, message: str) -> None:
        super().__init__(message)


@dataclass(frozen=True)
class Point:
    """A place in the code (`hook`) and a part of the work (`step`)."""

    hook: str
    step: str

    @property
    def id(self) -> str:
        """A name for a folder."""
        return hashlib.sha256(f"{self.hook} {self.step}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Fault:
    """What happens when a point is reached for the `hit`-th time, counted from 1."""

    kind: Kind
    point: Point
    hit: int = 1
    seconds: float = 0.0  # of a slow one

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Fault":
        """Return the fault that `asdict` made `values` of."""
        return cls(Kind(values["kind"]), Point(**values["point"]), values["hit"], values["seconds"])


@dataclass(frozen=True)
class Fired:
    """A fault that has happened, when (seconds since the epoch) and in which process."""

    fault: Fault
    time: float
    pid: int


@dataclass(frozen=True)
class Hit:
    """A line of the trace: a point that a process came by."""

    point: Point
    time: float
    pid: int


class FaultLog:
    """The side folder of a run: plan, trace, and what fired."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write_plan(self, run: str, faults: Sequence[Fault]) -> None:
        """Put the plan for the run in the folder `run`. Raises `ValueError` where two faults share a point and hit."""
        if len({(fault.point, fault.hit) for fault in faults}) < len(faults):
            raise ValueError("two faults at one hit of a point")
        storage.write_json(str(self.folder / "plan.json"), {"run": run, "faults": [asdict(fault) for fault in faults]})

    def plan(self) -> tuple[str, list[Fault]]:
        """Return the run's folder and the faults."""
        values = storage.read_json(str(self.folder / "plan.json"))
        return values["run"], [Fault.of(fault) for fault in values["faults"]]

    def count(self, point: Point) -> int:
        """Count a hit of a point, and return the how-manieth it was."""
        folder = storage.join(str(self.folder), "hits", point.id)
        number = len(storage.names(folder)) + 1
        while not storage.create(storage.join(folder, f"{number:06d}"), _stamp()):
            number += 1
        return number

    def happened(self, fault: Fault) -> Fired | None:
        """Return when and where a fault has fired, None where it has not."""
        path = str(self.folder / "hits" / fault.point.id / f"{fault.hit:06d}")
        return Fired(fault, **storage.read_json(path)) if storage.exists(path) else None

    def fired(self) -> list[Fired]:
        """Return the faults of the plan whose hit was counted, in the order of time."""
        found = (self.happened(fault) for fault in self.plan()[1])
        return sorted((fired for fired in found if fired is not None), key=lambda fired: fired.time)

    def trace(self) -> list[Hit]:
        """Return everything that was come by, in the order of time."""
        path = self.folder / "trace"
        lines = path.read_text().splitlines() if path.exists() else []
        hits = [json.loads(line) for line in lines]
        return sorted((Hit(Point(hook, step), at, pid) for hook, step, at, pid in hits), key=lambda hit: hit.time)

    def carried_out(self, fault: Fault) -> Path:
        """Return the file that says that somebody outside has done what the fault asks for."""
        return self.folder / "carried" / f"{fault.point.id}-{fault.hit}"


def _stamp() -> bytes:
    return json.dumps({"time": time.time(), "pid": os.getpid()}).encode()


def draw(seed: int, points: Iterable[Point], wanted: Sequence[tuple[Kind, Callable[[Point], bool]]]) -> list[Fault]:
    """Return a fault for each wanted kind, at a point that suits it.

    Of the points that suit and are free, the one with the smallest hash of (seed, kind, point) is taken. Raises
    `ValueError` where none is left.
    """
    from phases.seeds import child_seed  # brings torch, which a process that only meets faults may not need

    free = dict.fromkeys(points)
    faults = list[Fault]()
    for number, (kind, suits) in enumerate(wanted):
        suitable = [point for point in free if suits(point)]
        if not suitable:
            raise ValueError(f"no point is left for {kind}, fault {number}")

        def rank(point: Point, kind: Kind = kind, number: int = number) -> int:
            return child_seed(seed, "faults", kind, number, point.hook, point.step, 1)

        chosen = min(suitable, key=rank)
        del free[chosen]
        faults.append(Fault(kind, chosen, seconds=1.0 if kind is Kind.SLOW else 0.0))
    return faults


class Injector:
    """What is behind `hook` in a process that has a plan."""

    def __init__(self, log: FaultLog) -> None:
        self.log = log
        self.run, faults = log.plan()
        self._faults = {(fault.point, fault.hit): fault for fault in faults}
        self._points = {fault.point for fault in faults}
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._trace = os.open(log.folder / "trace", flags)  # a short line is one write, which is atomic

    def reach(self, hook: str, step: tuple[object, ...], folder: str = "") -> None:
        """Come by a point; `folder` is what was just completed there. Raises what is planned."""
        if (fault := self._due(Point(hook, "/".join(map(str, step))))) is not None:
            if fault.kind is Kind.CORRUPT:
                _flip_a_byte(Path(folder))
            self._strike(fault)

    def write(self, path: str, data: bytes) -> None:
        """Come by the point before a file of the run is written.

        Its lease and journal depend on time and have no points.
        """
        relative = os.path.relpath(path, self.run)
        if relative[:2].isdigit() and (fault := self._due(Point("write", relative))) is not None:
            if fault.kind is Kind.TORN:
                folder, name = os.path.split(path)
                os.makedirs(folder, exist_ok=True)
                Path(folder, f".tmp-{name}-torn").write_bytes(data[: len(data) // 2])
            self._strike(fault)

    def _due(self, point: Point) -> Fault | None:
        line = json.dumps([point.hook, point.step, time.time(), os.getpid()])
        os.write(self._trace, line.encode() + b"\n")
        return self._faults.get((point, self.log.count(point))) if point in self._points else None

    def _strike(self, fault: Fault) -> None:
        if fault.kind in OUTSIDE:
            self._await(fault)
        elif fault.kind is Kind.SLOW:
            time.sleep(fault.seconds)
        else:
            raise _error(fault)

    def _await(self, fault: Fault) -> None:
        """Stay at the point until the fault is carried out from outside, for some kinds for ever."""
        done, deadline = self.log.carried_out(fault), time.monotonic() + _PATIENCE
        while not done.exists():
            if time.monotonic() > deadline:
                raise ForgeError(f"{fault}: nobody carries it out")
            time.sleep(_POLL)


def _error(fault: Fault) -> BaseException:
    import ray.exceptions as rayx

    what = f"injected at {fault.point.hook} {fault.point.step}"
    match fault.kind:
        case Kind.TRANSIENT:
            return ConnectionResetError(errno.ECONNRESET, what)
        case Kind.LOST_OBJECT:
            return rayx.ObjectLostError("ff" * 28, None, what)
        case Kind.RESOURCE:
            return MemoryError(what)
        case Kind.NUMERICAL:
            return NumericalError(what)
        case Kind.VALIDATION:
            return ArtifactError(what)
        case Kind.UNPICKLABLE:
            return UnpicklableError(message=what)
        case Kind.DISK_FULL:
            return OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {what}")
        case _:
            return RuntimeError(what)


def _flip_a_byte(folder: Path) -> None:
    largest = max(folder.iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)


def _from_environment() -> Injector | None:
    folder = os.environ.get(ENVIRONMENT)
    return install(FaultLog(folder)) if folder else None


def install(log: FaultLog) -> Injector:
    """Make the hooks and the writes of this process follow a plan."""
    global _injector
    _injector = Injector(log)
    storage.before_writes(_write)
    return _injector


def _write(uri: str, data: bytes) -> None:
    if _injector is not None:
        _injector.write(uri, data)


def hook(name: str, *step: object, folder: str = "") -> None:
    """Come by a point; does nothing without a plan."""
    if _injector is not None:
        _injector.reach(name, step, folder)


_injector: Injector | None = None
_injector = _from_environment()
