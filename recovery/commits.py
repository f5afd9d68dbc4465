"""Who may commit a step: epochs, fenced by the store.

Two incarnations of an actor can run at once, and a paused one cannot be trusted to notice that it has been replaced.
So each attempt at a step gets an epoch with a slot of its own, and a slot is filled once, by a conditional create: with
the result, by the attempt that holds the epoch, or with a seal, by whoever starts the next attempt. The commit of a
sealed attempt is refused by the store, however late it comes and whatever the attempt believes.
"""

import hashlib
import json
from typing import Any

from phases import storage
from phases.errors import ForgeError

_SEAL = {"sealed": True}


class StaleEpochError(ForgeError):
    """A commit by an attempt that has been given up. What it computed is discarded."""


class Commits:
    """The commits of a run's steps, under RUN/commits: a folder per step with its grants and its slots."""

    def __init__(self, run: str) -> None:
        self.folder = storage.join(run, "commits")

    def begin(self, step: str) -> int:
        """Grant the next epoch of a step, counted from 1, and seal all earlier ones that have not committed."""
        epoch = len(storage.names(self._path(step, "granted"))) + 1
        while not storage.create(self._path(step, "granted", epoch), b""):
            epoch += 1
        for earlier in range(1, epoch):
            storage.create(self._path(step, "slots", earlier), json.dumps(_SEAL).encode())
        return epoch

    def commit(self, step: str, epoch: int, result: Any) -> None:
        """Record the JSON-able `result` of a step. Raises `StaleEpochError` where the epoch is sealed or committed."""
        if not storage.create(self._path(step, "slots", epoch), json.dumps({"result": result}).encode()):
            raise StaleEpochError(f"{step}: epoch {epoch} has been given up; its result is not taken")

    def committed(self, step: str) -> dict[str, Any] | None:
        """Return the first commit of a step as `{"result": ...}`, None where there is none."""
        for name in storage.names(self._path(step, "slots")):
            entry: dict[str, Any] = storage.read_json(storage.join(self._path(step, "slots"), name))
            if "result" in entry:
                return entry
        return None

    def _path(self, step: str, kind: str, epoch: int | None = None) -> str:
        """Return a path of a step; its folder is named by a hash, since steps are named freely."""
        folder = storage.join(self.folder, hashlib.sha256(step.encode()).hexdigest()[:16], kind)
        return folder if epoch is None else storage.join(folder, f"{epoch:06d}.json")
