"""Commits by an agent whose node is lost to the cluster while its process lives on: part of `supervision`.

The raylet of the agent's node is killed. Ray declares the node dead, the supervisor starts a successor on another, and
each step gets its next epoch. The old process knows nothing of it, and tries again and again to commit. What the store
accepted is counted from the old process' own record, and the store is read afterwards.
"""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.agent import Agent
from actors.supervised import Stage
from benchmarks.harness import Figure, progress
from coordinators.cluster import leave
from phases import storage
from phases.errors import ForgeError
from recovery.commits import Commits, FencedError
from recovery.supervision import SupervisionSettings

STEPS = [f"step-{number}" for number in range(20)]
_PATIENCE = 180.0
_SETTINGS = SupervisionSettings(restarts=10)
_QUICK_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


def stale_commits(folder: str, seconds: float) -> Figure:
    """Count the commits of the old process that the store accepted after its successor had been granted the steps."""
    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "_system_config": _QUICK_HEALTH_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        ray.init(address=cluster.address, log_to_driver=False)
        return asyncio.run(_measure(cluster, folder, seconds))
    finally:
        leave()
        cluster.shutdown()


class Committer(Agent):
    """Commits steps, as long as it is told to."""

    async def whoami(self) -> tuple[int, str]:
        """Return its pid and its node."""
        return os.getpid(), ray.get_runtime_context().get_node_id()

    async def commit(self, epochs: dict[str, int]) -> None:
        """Commit steps once."""
        for step, epoch in epochs.items():
            Commits(self.run_uri).commit(step, epoch, os.getpid())

    async def insist(self, epochs: dict[str, int], go: str, record: str) -> None:
        """Once the file `go` is there, try to commit all steps, for ever, and note in a file what was accepted."""
        await asyncio.to_thread(self._insist, epochs, go, record)

    def _insist(self, epochs: dict[str, int], go: str, record: str) -> None:
        while not Path(go).exists():
            time.sleep(0.02)
        while True:
            for step, epoch in epochs.items():
                try:
                    Commits(self.run_uri).commit(step, epoch, os.getpid())
                    accepted = True
                except FencedError:
                    accepted = False
                storage.append_line(record, json.dumps({"step": step, "accepted": accepted}))
            time.sleep(0.1)


async def _measure(cluster: Cluster, folder: str, seconds: float) -> Figure:
    commits, go, record = Commits(folder), Path(folder, "go"), Path(folder, "record")
    first = {step: commits.begin(step) for step in STEPS}
    with Stage(folder, "stale", _SETTINGS) as stage:
        child = stage.child("committer", Committer, cpus=1)
        supervisor = await stage.supervisor("stale", [child]).start()
        pid, node = await supervisor.call("committer", "whoami", timeout=_PATIENCE)
        insisting = asyncio.create_task(
            supervisor.call("committer", "insist", first, str(go), str(record), timeout=10**9)
        )
        await asyncio.sleep(0.5)
        start = time.perf_counter()
        _kill_raylet(cluster, node)
        failure = (await asyncio.gather(insisting, return_exceptions=True))[0]
        known = time.perf_counter() - start
        successor, elsewhere = await supervisor.call("committer", "whoami", timeout=_PATIENCE)
        replaced = time.perf_counter() - start
        progress(f"{failure}; known after {known:.1f} s, replaced after {replaced:.1f} s")
        second = {step: commits.begin(step) for step in STEPS}
        await supervisor.call("committer", "commit", dict(list(second.items())[::2]), timeout=_PATIENCE)
        go.touch()
        lived = await _outlive(pid, seconds)
        await supervisor.call("committer", "commit", dict(list(second.items())[1::2]), timeout=_PATIENCE)
        await supervisor.stop()
    attempts = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    if not attempts or elsewhere == node:
        raise ForgeError(f"nothing was measured: {len(attempts)} attempts by the old process; node {elsewhere}")
    accepted = sum(attempt["accepted"] for attempt in attempts)
    foreign = sum((commits.committed(step) or {}).get("result") != successor for step in STEPS)
    return Figure(
        key="stale_commits",
        value=accepted + foreign,
        unit=f"of {len(attempts)} attempts in {lived:.0f} s",
        better="lower",
        goal=0,
        raw={"attempts": [len(attempts)], "lived s": [lived], "known s": [known], "replaced s": [replaced]},
    )


def _kill_raylet(cluster: Cluster, node_id: str) -> None:
    node: Any = next(node for node in cluster.list_all_nodes() if node.node_id == node_id)
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)


async def _outlive(pid: int, seconds: float) -> float:
    """Wait while a process lives, at most so long, then kill it; return how long it lived."""
    start = time.perf_counter()
    while time.perf_counter() - start < seconds and _alive(pid):
        await asyncio.sleep(0.1)
    lived = time.perf_counter() - start
    if _alive(pid):
        os.kill(pid, signal.SIGKILL)
    return lived


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
