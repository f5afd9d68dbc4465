"""Looking at the processes of Ray's workers, on whatever node: which of them are stopped, which Ray never notices.

What a supervisor keeps is looked at by it. This is for actors that somebody else starts, such as Tune's trials and
their evaluators: they say where they are, and whoever waits for them looks. On another node a task looks, which has a
deadline since a node may be lost meanwhile; what cannot be seen is taken to run.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_LOOK_SECONDS = 5.0  # for a task on another node
_STOPPED = "TtXZ"


@dataclass(frozen=True)
class Whereabouts:
    """A process and its node."""

    pid: int
    node: str

    @classmethod
    def here(cls) -> "Whereabouts":
        """Return where the calling worker is."""
        return cls(os.getpid(), ray.get_runtime_context().get_node_id())

    def stopped(self) -> bool:
        """Say whether the process is known to be stopped (or traced, or dead)."""
        return self._ask(_is_stopped) is True

    def kill(self) -> None:
        """Kill it, also where it is stopped."""
        self._ask(_kill)

    def _ask(self, question: Callable[[int], bool]) -> bool | None:
        """Put a question about the process on its node; None where there is no answer."""
        if self.node == ray.get_runtime_context().get_node_id():
            return question(self.pid)
        remote: Any = ray.remote
        there = NodeAffinitySchedulingStrategy(self.node, soft=False)
        asked = remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(question).remote(self.pid)
        try:
            return bool(ray.get(asked, timeout=_LOOK_SECONDS))
        except (RayError, TimeoutError):
            return None


async def kill_once_stopped(process: Whereabouts, seconds: float = 1.0) -> None:
    """Look at a process for ever, and kill it when it is stopped at two looks in a row."""
    before = False
    while True:
        await asyncio.sleep(seconds)
        now = await asyncio.to_thread(process.stopped)
        if before and now:
            return await asyncio.to_thread(process.kill)
        before = now


def _is_stopped(pid: int) -> bool:
    """Say so from Linux' /proc."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in _STOPPED


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
