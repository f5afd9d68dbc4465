"""The journal of a run: numbered events in small objects, checksummed and chained.

An object holds the events that came together, is named by the first of them, and is put by conditional create, so that
a number is given once even if two processes write. `append` returns when its events are durable; `note` returns at
once, and what is noted within 100 ms shares one object and one flush. Each object holds the checksum of the one before
and the epoch of its writer: behind one of a newer epoch, the store has no place for a writer that was taken over.

What a crash of the machine leaves is a damaged end. It is read up to there, and `recover` sets the rest aside and says
so; whoever relied on lost events does that work again. Damage before whole events was no crash, and is an error.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from phases import storage
from phases.errors import ArtifactError
from recovery.commits import FencedError

VERSION = 2  # 1 had one event per object and no epochs
GROUP_SECONDS = 0.1  # each group costs a flush, which those who wait for one of their own wait for, too
LOSS = "journal_damaged"
_ASIDE = ".damaged-"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """Something that happened. `number` counts from 1."""

    number: int
    kind: str
    time: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Damage:
    """What cannot be read of a journal: the objects `files`, from event `number` on. `tampered` says it is no crash."""

    number: int
    problem: str
    files: tuple[str, ...]
    tampered: bool


@dataclass(frozen=True)
class _Object:
    events: list[Event]
    before: str
    checksum: str
    epoch: int


class _Entry(NamedTuple):
    """An event that has no number yet."""

    kind: str
    time: datetime
    data: dict[str, Any]


class NewerVersionError(ArtifactError):
    """A journal that only a newer Agent Forge can read."""


class Journal:
    """The journal of the run at `run`. Appending remembers the place and lists the folder only once.

    A writer with an `epoch`, that of the run's lease, raises `FencedError` as soon as one with a newer epoch has
    appended. One without goes along with whoever has the run. Its methods may be called by several threads.
    """

    def __init__(self, run: str, epoch: int | None = None) -> None:
        self.folder = storage.join(run, "journal")
        self.epoch = epoch
        self._writing = threading.Lock()
        self._noting = threading.Lock()  # never held for long
        self._noted = list[_Entry]()
        self._timer: threading.Timer | None = None
        self._failure: Exception | None = None
        self._number: int | None = None
        self._checksum, self._newest_epoch = "", 0

    def append(self, kind: str, **data: Any) -> Event:
        """Put an event behind the last one, also where another process has put some in between."""
        return self.append_many([(kind, data)])[0]

    def append_many(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Event]:
        """Put events behind what was noted before, all in one object: all are there afterwards, or none."""
        with self._writing:
            with self._noting:
                noted, self._noted = self._noted, []
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
            entries = [*noted, *(_entry(kind, data) for kind, data in events)]
            try:
                return self._put(entries)[len(noted) :] if entries else []
            except BaseException:
                with self._noting:
                    self._noted = noted + self._noted
                raise

    def note(self, kind: str, **data: Any) -> None:
        """Put an event within 100 ms, together with others. Raises what the last such group failed with."""
        with self._noting:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            self._noted.append(_entry(kind, data))
            if self._timer is None:
                self._timer = threading.Timer(GROUP_SECONDS, self._on_time)  # no daemon: the process waits for it
                self._timer.start()

    def flush(self) -> None:
        """Put what is noted; durable on return."""
        self.append_many([])

    def read(self, kind: str | None = None) -> list[Event]:
        """Return the events in order, only those of a `kind` where one is named, up to a damaged end.

        Raises `ArtifactError` naming an object that is altered or missing while others behind it are whole, or one of
        a newer version.
        """
        events, damage = self.scan()
        if damage is not None:
            _refuse_tampering(damage)
            _log.warning("journal read up to event %d: %s", damage.number - 1, damage.problem)
        return [event for event in events if kind in (None, event.kind)]

    def scan(self) -> tuple[list[Event], Damage | None]:
        """Return the longest good beginning, and what is wrong with the rest. Raises `NewerVersionError`."""
        events, before = list[Event](), ""
        names = self._names()
        for place, name in enumerate(names):
            try:
                found = self._next(name, len(events) + 1, before)
            except NewerVersionError:
                raise
            except ArtifactError as error:
                tampered = any(self._is_whole(other) for other in names[place:])
                return events, Damage(len(events) + 1, str(error), tuple(names[place:]), tampered)
            events += found.events
            before = found.checksum
        return events, None

    def newest_epoch(self) -> int:
        """Return the epoch of the last object that is whole, 0 where there is none."""
        for name in reversed(self._names()):
            try:
                return _parse(storage.join(self.folder, name)).epoch
            except NewerVersionError:
                raise
            except ArtifactError:
                continue  # a damaged end
        return 0

    def recover(self) -> list[str]:
        """Set a damaged end aside, journal the loss and return the files; for the holder of the run's lease only.

        Raises as `read` does. Where it is interrupted, the next call completes it.
        """
        events, damage = self.scan()
        if damage is not None:
            _refuse_tampering(damage)
            for name in reversed(damage.files):  # from the end, so that what is left is always a damaged end
                self._set_aside(name)
        told = {name for event in events if event.kind == LOSS for name in event.data["files"]}
        aside = [name for name in storage.names(self.folder) if _ASIDE in name and name not in told]
        if aside:
            self._number = None
            problem = damage.problem if damage else "set aside before, when this was interrupted"
            self.append(LOSS, lost_from=len(events) + 1, problem=problem, files=aside)
            _log.error("journal: events from %d on were damaged and are lost: %s", len(events) + 1, ", ".join(aside))
        return aside

    def _put(self, entries: list[_Entry]) -> list[Event]:
        while True:
            first = (self._seek_end() if self._number is None else self._number) + 1
            events = [Event(first + place, e.kind, e.time.isoformat(), e.data) for place, e in enumerate(entries)]
            epoch = self._newest_epoch if self.epoch is None else self.epoch
            body = {"version": VERSION, "before": self._checksum, "epoch": epoch, "events": list(map(vars, events))}
            body = json.loads(json.dumps(body))  # as it will be read
            checksum = _checksum(body)
            content = json.dumps(body | {"checksum": checksum}).encode()
            if storage.create(self._path(first), content, checked=True):
                self._number, self._checksum = events[-1].number, checksum
                return events
            self._number = None

    def _seek_end(self) -> int:
        """Learn where the journal ends. Raises `FencedError` where a newer epoch has begun there."""
        number, self._checksum, self._newest_epoch = 0, "", 0
        if names := self._names():
            path = storage.join(self.folder, names[-1])
            last = _parse(path)
            storage.sync(path)  # what comes behind it must not survive a power failure that it does not
            number, self._checksum, self._newest_epoch = last.events[-1].number, last.checksum, last.epoch
        if self.epoch is not None and self._newest_epoch > self.epoch:
            epochs = f"epoch {self._newest_epoch}, this one's was {self.epoch}"
            raise FencedError(f"{self.folder}: another process has taken over this run ({epochs}); this one stops")
        self._number = number
        return number

    def _on_time(self) -> None:
        try:
            self.flush()
        except Exception as error:
            self._failure = error
            _log.error("journal: what was noted is not written yet: %s", error)

    def _next(self, name: str, number: int, before: str) -> _Object:
        if name != f"{number:08d}.json":
            raise ArtifactError(f"{self._path(number)}: missing from the journal")
        found = _parse(path := storage.join(self.folder, name))
        if found.before != before or found.events[0].number != number:
            raise ArtifactError(f"{path}: altered since it was written, or put behind another one")
        return found

    def _is_whole(self, name: str) -> bool:
        try:
            _parse(storage.join(self.folder, name))
        except ArtifactError:
            return False
        return True

    def _set_aside(self, name: str) -> None:
        taken = storage.names(self.folder)
        free = next(n for n in range(1, len(taken) + 2) if f"{name}{_ASIDE}{n}" not in taken)
        storage.move(storage.join(self.folder, name), storage.join(self.folder, f"{name}{_ASIDE}{free}"))

    def _names(self) -> list[str]:
        return [name for name in storage.names(self.folder) if name.endswith(".json")]

    def _path(self, number: int) -> str:
        return storage.join(self.folder, f"{number:08d}.json")


def _refuse_tampering(damage: Damage) -> None:
    if damage.tampered:
        fix = f"restore it, or remove it and all behind it to go on from event {damage.number - 1}"
        raise ArtifactError(f"{damage.problem}; what is behind it is whole, so this was no crash: {fix}")


def _entry(kind: str, data: Mapping[str, Any]) -> _Entry:
    return _Entry(kind, datetime.now(UTC), dict(data))


def _parse(path: str) -> _Object:
    """Return an object of the journal. Raises `ArtifactError` where it is not whole, or of a newer version."""
    body = storage.read_json(path)
    try:
        if body.get("version", 0) > VERSION:
            raise NewerVersionError(f"{path}: written by a newer version of Agent Forge; update this one")
        checksum = body.pop("checksum")
        if checksum != _checksum(body):
            raise ArtifactError(f"{path}: altered since it was written")
        entries = body["events"] if body["version"] > 1 else [{key: body[key] for key in Event.__annotations__}]
        if not entries:
            raise ArtifactError(f"{path}: holds no event")
        return _Object([Event(**entry) for entry in entries], body["before"], checksum, body.get("epoch", 0))
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not part of a journal ({error!r})") from error


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
