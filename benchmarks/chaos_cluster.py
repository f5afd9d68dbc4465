"""A local cluster of several nodes whose processes can be found and killed, and of which nothing is left behind.

Each process inherits the folder of the fault plan in its environment, which marks it as ours: raylets, workers and
drivers, also those whose parents are dead. Signals go to such processes only.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import ray
from ray._common.utils import get_ray_address_file
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)
from ray.cluster_utils import Cluster

from recovery.faults import ENVIRONMENT

_STORE_BYTES = 100 << 20
_TOO_SLOW, _HEAD_ATTEMPTS = "timed out during startup", 4
_START_SECONDS = 600  # until nodes know of each other; machines may be busy
_CPUS_PER_NODE = 2
_NODES = 2  # besides the head, which holds no CPUs: Ray does not outlive its head
_CONFIG = {
    "worker_niceness": 0,  # at the default of 15 a busy machine starves them
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,  # a dead raylet refuses at once; only a frozen one takes so long
    "health_check_failure_threshold": 4,
}


class LocalCluster:
    """A head and any number of nodes, up inside a `with` block. `folder` has the plan that its processes follow."""

    def __init__(self, folder: Path, nodes: int = _NODES, cpus: int = _CPUS_PER_NODE) -> None:
        self._nodes, self._cpus = nodes, cpus
        self._mark = f"{ENVIRONMENT}={folder}".encode()
        self._folder = str(folder)
        self._starting = list[threading.Thread]()
        self._cluster: Any = None
        self._address = ""

    def __enter__(self) -> Self:
        os.environ[ENVIRONMENT] = self._folder
        self._terminate = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and leave by __exit__
        os.environ.pop("RAY_ADDRESS", None)
        enable_token_auth_by_default()  # as `ray.init` and `ray start` do, and `Cluster` does not
        ensure_token_if_auth_enabled()
        try:
            self._start_head()
            self._address = str(self._cluster.address)
            self._head = next(pid for pid in self.processes() if _is_raylet(pid))
            for _ in range(self._nodes):
                self._add(num_cpus=self._cpus)
            self._await_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_head(self) -> None:
        """Start the head, which has CPUs only where there is no other node; again where Ray's 30 s were too short."""
        cpus = 0 if self._nodes else self._cpus
        for left in reversed(range(_HEAD_ATTEMPTS)):
            self._cluster = Cluster(shutdown_at_exit=False)  # whose hooks only work in the main thread
            try:
                return self._add(num_cpus=cpus, include_dashboard=False, _system_config=_CONFIG)
            except Exception as error:  # Ray has none of its own for this
                if _TOO_SLOW not in str(error) or not left:
                    raise
            self._kill_all()

    def __exit__(self, *_: object) -> None:
        os.environ.pop(ENVIRONMENT, None)
        signal.signal(signal.SIGTERM, self._terminate)
        for thread in self._starting:
            thread.join(60)
        self._kill_all()
        if self._address and ray._private.utils.read_ray_address() == self._address:
            os.unlink(get_ray_address_file(None))  # lest somebody else look for it

    def _kill_all(self) -> None:
        deadline, killed = time.monotonic() + 60, set[int]()
        while left := list(self.processes()):
            for pid in left:
                self.signal(pid, signal.SIGKILL)
            killed.update(left)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {left} do not die")
            time.sleep(0.1)
        for pid in killed:
            _reap(pid)

    @property
    def address(self) -> str:
        """What a driver joins by."""
        return self._address

    def processes(self, named: str = "") -> Iterator[int]:
        """Yield the processes of this cluster and its drivers that are alive, by how their command line begins."""
        for path in Path("/proc").glob("[0-9]*"):
            if int(path.name) != os.getpid() and self._is_ours(path) and _command(path).startswith(named):
                yield int(path.name)

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a process of ours; no matter if it is gone."""
        if self._is_ours(Path("/proc", str(pid))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_raylet(self, pid: int) -> None:
        """Kill the raylet of the node that a worker is on, and nothing else, and bring up another node."""
        raylet = self._raylet_of(pid)
        if raylet is not None:
            self.signal(raylet, signal.SIGKILL)
            _reap(raylet)
            self._replace()

    def remove_node(self, pid: int) -> None:
        """Kill all processes of the node that a worker is on, and bring up another node."""
        raylet = self._raylet_of(pid)
        if raylet is not None:
            of_the_node = [raylet, *(process for process in self.processes() if _parent(process) == raylet)]
            for process in of_the_node:
                self.signal(process, signal.SIGKILL)
            _reap(raylet)
            self._replace()

    def _raylet_of(self, pid: int) -> int | None:
        """Return the raylet that has started a worker; the head's is spared."""
        parent = _parent(pid)
        if parent is None or parent == self._head or not _is_raylet(parent):
            return None
        return parent

    def _replace(self) -> None:
        """Start a node beside whatever else goes on."""
        thread = threading.Thread(target=self._add, kwargs={"num_cpus": self._cpus})
        thread.start()
        self._starting.append(thread)

    def _add(self, **options: Any) -> None:
        try:
            self._cluster.add_node(wait=False, object_store_memory=_STORE_BYTES, **options)
        except Exception as error:  # Ray has none of its own for this
            if _TOO_SLOW not in str(error) or self._cluster.head_node is None:
                raise
            # after 30 s, which is short on a busy machine; what was started joins when it can

    def _await_nodes(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while len(self._cluster.global_state._live_node_ids()) <= self._nodes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the nodes of the cluster are not up after {_START_SECONDS} s")
            time.sleep(0.1)

    def _is_ours(self, process: Path) -> bool:
        try:
            return self._mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False  # gone, or somebody else's


def _is_raylet(pid: int) -> bool:
    return _command(Path("/proc", str(pid))).partition(" ")[0].endswith("/raylet")


def _reap(pid: int) -> None:
    """Take the exit status of a child that was killed, lest it stay as a zombie; others are somebody else's."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
