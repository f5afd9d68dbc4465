"""The lease on a run directory: one live process works in it at a time.

A lease is an object `lease/<epoch>` made by conditional create, so that of two processes one wins; the holder renews
it by writing the time into `lease/<epoch>.beat`. It is free again when it was released, when its process is gone from
this host, or when it has not been renewed for longer than it promised. Epochs only grow.
"""

import os
import socket
import threading
import time
from typing import Any, Self

from phases import storage
from phases.errors import ArtifactError, BusyError

RENEWAL_SECONDS = 5.0
EXPIRY_SECONDS = 30.0


class Lease:
    """Held inside a `with` block. Raises `BusyError` naming the owner where another live process holds it."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.folder = storage.join(run, "lease")
        self.epoch = 0
        self._stopped = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True, name="lease")

    def __enter__(self) -> Self:
        taken = sorted(int(name) for name in storage.names(self.folder) if name.isdigit())
        if taken:
            self._refuse_if_held(taken[-1])
        self.epoch = (taken[-1] if taken else 0) + 1
        if not storage.create(self._path(self.epoch), b"{}"):
            raise BusyError(f"{self.run}: another process took the lease at the same moment; try again")
        self._beat()
        self._renewer.start()
        for epoch in taken:
            storage.remove(self._path(epoch))
            storage.remove(self._path(epoch) + ".beat")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._renewer.join()
        storage.write_json(self._path(self.epoch) + ".beat", {"released": True})

    def _path(self, epoch: int) -> str:
        return storage.join(self.folder, f"{epoch:08d}")

    def _beat(self) -> None:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": _process_start(os.getpid())}
        storage.write_json(self._path(self.epoch) + ".beat", owner | {"time": time.time()})

    def _renew(self) -> None:
        while not self._stopped.wait(RENEWAL_SECONDS):
            self._beat()

    def _refuse_if_held(self, epoch: int) -> None:
        try:
            owner = storage.read_json(self._path(epoch) + ".beat")
        except ArtifactError:
            return  # its process died between taking the lease and the first beat
        if not _is_live(owner):
            return
        raise BusyError(
            f"{self.run}: process {owner['pid']} on {owner['host']} is working in this run directory;"
            f" wait for it, stop it, or choose another --run-dir"
        )


def _is_live(owner: dict[str, Any]) -> bool:
    if owner.get("released"):
        return False
    if owner["host"] == socket.gethostname():
        return bool(_process_start(owner["pid"]) == owner["started"])
    return time.time() - float(owner["time"]) < EXPIRY_SECONDS


def _process_start(pid: int) -> str | None:
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
