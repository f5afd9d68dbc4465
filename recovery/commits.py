"""Who may commit a step: epochs, fenced by the store.

Two incarnations of an actor can run at once, and a paused one cannot be trusted to notice that it has been replaced.
So each attempt at a step gets an epoch, and the store decides whether its commit counts, however late it comes and
whatever the attempt believes. Epochs are a step's, whatever it works on; a result is one of certain inputs, and is not
taken for that of others.

In a store of objects, an attempt has a slot that is filled once, by a conditional create: with the result, or with a
seal, by whoever starts the next attempt. On a local disk a new file costs twice what an append does, so there all is
in one file, in the order in which the kernel appended it: a commit counts if no later attempt begins before it.
"""

import hashlib
import itertools
import json
import logging
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from phases import storage
from phases.errors import ConfigError, ForgeError

_GRANT, _SLOT = ".granted", ".json"
_log = logging.getLogger(__name__)


class FencedError(ForgeError):
    """Another process or attempt has taken over what this one was doing; what it did since then is discarded."""


class Commits:
    """The commits of a run's steps. Several may be open at once, in threads, processes and hosts."""

    def __init__(self, run: str) -> None:
        slots, log = storage.join(run, "commits"), storage.join(run, "commits.log")
        self._store: _Slots | _Log = _Slots(slots)
        if storage.appends_in_order(run) and not storage.exists(slots):
            self._store = _Log(log)
        elif storage.exists(log):
            raise ConfigError.of("--run-dir", run, "was used on the disk of another host", "resume the run there")

    def begin(self, step: str) -> int:
        """Grant the next epoch of a step, counted from 1; no earlier one that has not committed can do so any more.

        This needs not survive a power failure, which no attempt at the step survives.
        """
        return self._store.begin(step)

    def commit(self, step: str, epoch: int, result: Any, inputs: str = "") -> None:
        """Record the JSON-able `result` of a step for `inputs` (their hash), in one flush of the disk.

        Raises `FencedError` where a later epoch has begun, or this one is committed.
        """
        if not self._store.commit({"step": step, "epoch": epoch, "inputs": inputs, "result": result}):
            raise FencedError(f"{step}: epoch {epoch} has been given up; its result is not taken")

    def committed(self, step: str, inputs: str = "") -> dict[str, Any] | None:
        """Return the first commit of a step for `inputs`, with its `result`; None where there is none.

        One that is damaged is logged and does not count: the step is to be done again.
        """
        found = (entry for entry in self._store.commits(step) if entry["inputs"] == inputs)
        return next(found, None)


class _Slots:
    """A grant and a slot per attempt, named by step and epoch.

    Nothing is listed: attempts are counted from 1 without a gap, and a step has few.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def begin(self, step: str) -> int:
        epoch = 1
        while not storage.create(self._path(step, epoch, _GRANT), b"", durable=False):
            epoch += 1
        for earlier in range(1, epoch):
            storage.create(self._path(step, earlier, _SLOT), _SEALED, checked=True, durable=False)
        return epoch

    def commit(self, entry: dict[str, Any]) -> bool:
        return storage.create(self._path(entry["step"], entry["epoch"], _SLOT), _pack(entry), checked=True)

    def commits(self, step: str) -> Iterator[dict[str, Any]]:
        epoch = 1
        while storage.exists(self._path(step, epoch, _GRANT)):
            path = self._path(step, epoch, _SLOT)
            if storage.exists(path):
                entry = _unpack(path, storage.read_bytes(path))
                if entry is not None and "result" in entry:
                    yield entry
            epoch += 1

    def _path(self, step: str, epoch: int, kind: str) -> str:
        """Return a path of an attempt; a hash stands for the step, since steps are named freely."""
        return storage.join(self.folder, f"{hashlib.sha256(step.encode()).hexdigest()[:16]}-{epoch:06d}{kind}")


class _Log:
    """A line per grant and commit, with a name of its own by which its writer knows it again.

    A line begins and ends with a line break, so that a torn one before it does no harm.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = storage.AppendedFile(path)
        self._lock = threading.Lock()
        self._writer, self._numbers = os.urandom(8).hex(), itertools.count()
        self._read = 0
        self._granted = Counter[str]()
        self._epochs: dict[str, int] = {}  # of the grants of this process, by name
        self._commits: dict[str, dict[int, tuple[str, bytes]]] = defaultdict(dict)  # by step and epoch: name and JSON

    def begin(self, step: str) -> int:
        name = self._new_name()
        self._epochs[name] = 0
        grant = {"step": step, "name": name}
        self._append(grant, durable=False)
        return self._epochs.pop(name)

    def commit(self, entry: dict[str, Any]) -> bool:
        entry = entry | {"name": self._new_name()}
        if not self._counts(entry):
            self._catch_up()  # its epoch was granted in another process
        if not self._counts(entry):
            return False
        self._append(entry, durable=True)
        name, _ = self._commits[entry["step"]].get(entry["epoch"], ("", b""))
        return bool(name == entry["name"])

    def commits(self, step: str) -> Iterator[dict[str, Any]]:
        self._catch_up()
        with self._lock:
            return iter([json.loads(content) for _, (_, content) in sorted(self._commits[step].items())])

    def _new_name(self) -> str:
        return f"{self._writer}-{next(self._numbers)}"

    def _append(self, entry: dict[str, Any], *, durable: bool) -> None:
        """Append a line and take note of it, and of what others have appended meanwhile, which stands before it."""
        content = json.dumps(entry).encode()
        line = b"\n" + _line(content)
        begin = self._file.append(line, durable=durable)
        with self._lock:
            if self._read == begin:  # nobody has, and what it says needs not be read
                self._apply(entry, content)
                self._read += len(line)
                return
        self._catch_up()

    def _counts(self, entry: dict[str, Any]) -> bool:
        step, epoch = entry["step"], entry["epoch"]
        return self._granted[step] == epoch and epoch not in self._commits[step]

    def _catch_up(self) -> None:
        """Read what was appended since the last time, up to the last whole line."""
        with self._lock:
            data = self._file.read_from(self._read)
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in filter(None, whole.split(b"\n")):
                if (entry := _unpack(self.path, line)) is not None:
                    self._apply(entry, line.partition(b" ")[2])

    def _apply(self, entry: dict[str, Any], content: bytes) -> None:
        step = entry["step"]
        if "result" not in entry:
            self._granted[step] += 1
            if entry["name"] in self._epochs:
                self._epochs[entry["name"]] = self._granted[step]
        elif self._counts(entry):
            self._commits[step][entry["epoch"]] = entry["name"], content


def _pack(entry: dict[str, Any]) -> bytes:
    """Return an entry as a line."""
    return _line(json.dumps(entry).encode())


def _line(content: bytes) -> bytes:
    """Return a line: a checksum, and what it is of."""
    return hashlib.sha256(content).hexdigest()[:16].encode() + b" " + content + b"\n"


def _unpack(path: str, line: bytes) -> dict[str, Any] | None:
    """Return an entry, None (and a warning) where the line is not whole."""
    checksum, _, content = line.rstrip(b"\n").partition(b" ")
    if hashlib.sha256(content).hexdigest()[:16].encode() != checksum:
        _log.warning("commit passed over: %s holds one that is torn, or altered since it was written", path)
        return None
    entry: dict[str, Any] = json.loads(content)
    return entry


_SEALED = _pack({"sealed": True})
