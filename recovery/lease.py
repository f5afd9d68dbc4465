"""The lease on a run directory: one live process works in it at a time.

A lease is an object `lease/<epoch>` made by conditional create, so that of two processes one wins; the holder renews
it by writing the time into `lease/<epoch>.beat`. It is free again when it was released, when its process is gone from
this host, or when it was not renewed for longer than it promised, be its process alive, frozen or elsewhere. Epochs
only grow.

A holder that slept through its expiry cannot be kept from believing in its lease for a moment. What it writes is
therefore fenced by the epoch where it is written (`recovery/journal.py`, `recovery/commits.py`), and `check` tells it
to stop.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from phases import storage
from phases.errors import ArtifactError, BusyError
from recovery.commits import FencedError
from recovery.journal import Journal

RENEWAL_SECONDS = 5.0
EXPIRY_SECONDS = 30.0  # clocks of hosts that share a run have to agree to within a fraction of this
_BEAT = ".beat"
_log = logging.getLogger(__name__)


class Lease:
    """Held inside a `with` block. Raises `BusyError` naming the owner where another live process holds it.

    `clock` is in seconds since the epoch; `owner` says where this process is to be looked for.
    """

    def __init__(
        self, run: str, *, clock: Callable[[], float] = time.time, owner: dict[str, Any] | None = None
    ) -> None:
        self.run = run
        self.folder = storage.join(run, "lease")
        self.epoch = 0
        self._clock = clock
        self._owner = owner or this_process()
        self._renewed = 0.0
        self._fenced = False
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._renewer = threading.Thread(target=self._renew_in_time, daemon=True, name="lease")

    def __enter__(self) -> Self:
        self.take()
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._renewer.join()
        self.release()

    def take(self) -> None:
        """Take the lease. Raises `BusyError` where a live process has it, or was faster just now."""
        written = Journal(self.run).newest_epoch()  # epochs grow even where somebody has removed the folder
        epochs = self._epochs()
        if (owner := self._holder(epochs)) is not None:
            raise BusyError(
                f"{self.run}: process {owner['pid']} on {owner['host']} is working in this run directory;"
                f" wait for it, stop it, or choose another --run-dir"
            )
        with self._lock:
            self._claim(max([written, *epochs]) + 1)

    def holder(self) -> dict[str, Any] | None:
        """Return host and process of whoever has the lease and renews it, None where nobody does."""
        return self._holder(self._epochs())

    def renew(self) -> None:
        """Tell others that this process lives. Raises `FencedError` where one of them has taken over."""
        with self._lock:
            if self._fenced or max(self._epochs(), default=0) > self.epoch:
                self._fenced = True
                raise FencedError(
                    f"{self.run}: nobody heard of this process for {EXPIRY_SECONDS:g} s, and another has taken over the"
                    f" run (epoch {self.epoch} is past); this one stops, and has not harmed what the other does"
                )
            sign = self._sign_of_life()
            storage.write_json(self._path(self.epoch) + _BEAT, sign)
            self._renewed = sign["time"]

    def check(self) -> None:
        """Return if the lease is held. Raises `FencedError` where it is not, or was not renewed for too long."""
        if not self._fenced and self._clock() - self._renewed <= EXPIRY_SECONDS:
            return
        try:
            self.renew()  # slept through the expiry, which harms nobody where nobody has taken over
        except OSError as error:
            raise FencedError(f"{self.run}: the lease could not be renewed ({error}); another may have it") from error

    def advance(self) -> int:
        """Begin a new epoch, which fences off whoever still works under this one, and return it."""
        with self._lock:
            before = self.epoch
            try:
                self._claim(before + 1)
            except BusyError as error:
                raise FencedError(f"{self.run}: another process has taken over; this one stops") from error
            return self.epoch

    def release(self) -> None:
        """Let others have the lease at once; whoever was taken over has nothing to release."""
        if not self._fenced:
            storage.write_json(self._path(self.epoch) + _BEAT, {"released": True})

    def _claim(self, epoch: int) -> None:
        """Make this epoch ours and the newest. Raises `BusyError` where it is somebody else's."""
        busy = f"{self.run}: another process took the lease at the same moment; try again"
        sign = self._sign_of_life()
        if not storage.create(self._path(epoch), json.dumps(sign).encode()):
            raise BusyError(busy)
        epochs = self._epochs()
        if epochs[-1] != epoch:  # the number was free since others have come and gone
            storage.remove(self._path(epoch))
            raise BusyError(busy)
        self.epoch, self._renewed = epoch, sign["time"]
        for earlier in epochs[:-1]:
            storage.remove(self._path(earlier))
            storage.remove(self._path(earlier) + _BEAT)

    def _holder(self, epochs: list[int]) -> dict[str, Any] | None:
        owner = self._last_sign(epochs[-1]) if epochs else None
        return owner if owner is not None and self._is_live(owner) else None

    def _last_sign(self, epoch: int) -> dict[str, Any] | None:
        """Return the newest sign of life of an epoch's owner; None where a crash of the machine has damaged it."""
        for path in (self._path(epoch) + _BEAT, self._path(epoch)):
            try:
                sign = storage.read_json(path)
            except ArtifactError:
                continue  # not renewed yet
            if isinstance(sign, dict) and ("time" in sign or "released" in sign):
                return sign
        return None

    def _is_live(self, owner: dict[str, Any]) -> bool:
        if owner.get("released") or self._clock() - float(owner["time"]) > EXPIRY_SECONDS:
            return False
        if owner["host"] != self._owner["host"]:
            return True
        return process_start(int(owner["pid"])) == str(owner["started"])

    def _sign_of_life(self) -> dict[str, Any]:
        return self._owner | {"time": self._clock()}

    def _epochs(self) -> list[int]:
        return sorted(int(name) for name in storage.names(self.folder) if name.isdigit())

    def _path(self, epoch: int) -> str:
        return storage.join(self.folder, f"{epoch:08d}")

    def _renew_in_time(self) -> None:
        while not self._stopped.wait(RENEWAL_SECONDS):
            try:
                self.renew()
            except FencedError as error:
                _log.error("%s", error)
                return
            except Exception:  # the store does not answer; `check` says when that has lasted too long
                _log.warning("%s: the lease is not renewed", self.run, exc_info=True)


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}


def process_start(pid: int) -> str | None:
    """Return when a process began, in ticks since boot, so that a reused pid is not taken for it; None where gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return _exists_without_proc(pid)
    return None if fields[0] == "Z" else fields[19]


def _exists_without_proc(pid: int) -> str | None:
    if os.path.isdir("/proc/self"):
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return "alive"
