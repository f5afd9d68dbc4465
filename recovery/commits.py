"""Who may commit a step: epochs, fenced by the store.

Two incarnations of an actor can run at once, and a paused one cannot be trusted to notice that it has been replaced.
So each attempt at a step gets an epoch with a slot of its own, and a slot is filled once, by a conditional create: with
the result, by the attempt that holds the epoch, or with a seal, by whoever starts the next attempt. The commit of a
sealed attempt is refused by the store, however late it comes and whatever the attempt believes.

Epochs are a step's, whatever it works on; a result is one of certain inputs, and is not taken for that of others.
"""

import hashlib
import json
import logging
from typing import Any

from phases import storage
from phases.errors import ArtifactError, ForgeError

_GRANT, _SLOT = ".granted", ".json"
_log = logging.getLogger(__name__)


class FencedError(ForgeError):
    """Another process or attempt has taken over what this one was doing; what it did since then is discarded."""


class Commits:
    """The commits of a run's steps, under RUN/commits: a grant and a slot per attempt, named by step and epoch.

    Nothing is listed: attempts are counted from 1 without a gap, and a step has few.
    """

    def __init__(self, run: str) -> None:
        self.folder = storage.join(run, "commits")

    def begin(self, step: str) -> int:
        """Grant the next epoch of a step, counted from 1, and seal all earlier ones that have not committed.

        Neither needs to survive a power failure, which no attempt at the step survives.
        """
        epoch = 1
        while not storage.create(self._path(step, epoch, _GRANT), b"", durable=False):
            epoch += 1
        for earlier in range(1, epoch):
            storage.create(self._path(step, earlier, _SLOT), _SEALED, checked=True, durable=False)
        return epoch

    def commit(self, step: str, epoch: int, result: Any, inputs: str = "") -> None:
        """Record the JSON-able `result` of a step for `inputs` (their hash), in one flush of the disk.

        Raises `FencedError` where the epoch is sealed or committed.
        """
        entry = {"step": step, "epoch": epoch, "inputs": inputs, "result": result}
        if not storage.create(self._path(step, epoch, _SLOT), _pack(entry), checked=True):
            raise FencedError(f"{step}: epoch {epoch} has been given up; its result is not taken")

    def committed(self, step: str, inputs: str = "") -> dict[str, Any] | None:
        """Return the first commit of a step for `inputs`, with its `result`; None where there is none.

        One that is damaged is logged and does not count: the step is to be done again.
        """
        epoch = 1
        while storage.exists(self._path(step, epoch, _GRANT)):
            path = self._path(step, epoch, _SLOT)
            epoch += 1
            if not storage.exists(path):
                continue
            try:
                entry = _unpack(path, storage.read_bytes(path))
            except ArtifactError as error:
                _log.warning("commit passed over: %s", error)
                continue
            if "result" in entry and entry["inputs"] == inputs:
                return entry
        return None

    def _path(self, step: str, epoch: int, kind: str) -> str:
        """Return a path of an attempt; a hash stands for the step, since steps are named freely."""
        return storage.join(self.folder, f"{hashlib.sha256(step.encode()).hexdigest()[:16]}-{epoch:06d}{kind}")


def _pack(entry: dict[str, Any]) -> bytes:
    entry = json.loads(json.dumps(entry))  # as it will be read
    return json.dumps(entry | {"checksum": _checksum(entry)}).encode()


def _unpack(path: str, data: bytes) -> dict[str, Any]:
    """Return an entry. Raises `ArtifactError` naming a file that is not a whole one."""
    try:
        entry: dict[str, Any] = json.loads(data)
        checksum = entry.pop("checksum")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: torn or not a commit ({error!r})") from error
    if checksum != _checksum(entry):
        raise ArtifactError(f"{path}: altered since it was written")
    return entry


def _checksum(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


_SEALED = _pack({"sealed": True})
