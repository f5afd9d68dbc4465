"""The agent of `concurrent_models`: hashes for any model, tags what it reports, and fails as it is told to.

It is a module of its own so that its processes import no more than an agent needs.
"""

import hashlib
import os
import signal
import time
from typing import Any

import numpy as np

from actors.agent import Agent
from phases import storage
from phases.errors import NumericalError

METRICS = "tasks.jsonl"
BLOCK = 1 << 20  # bytes that a round hashes
_REPORT = 1 << 18  # bytes of a report: more than travels inside a message
_STEPS = 20  # signs of progress per task

Report = np.ndarray[Any, np.dtype[np.uint8]]


class Hasher(Agent):
    """Works for any model."""

    def work(
        self, task: str, model: str, rounds: int, piece: int, fault: tuple[str, float] | None = None, **parts: Report
    ) -> Report:
        """Hash the task's own bytes and `parts` for some rounds; report the model's tag and bytes made of the result.

        `piece` is how many bytes are hashed at once, which changes nothing of the result.
        """
        start, own = time.perf_counter(), tag(model)
        foreign = sum(bytes(part[: len(own)]) != own for part in parts.values())
        block = memoryview(
            hashlib.shake_128(b"".join([task.encode(), *(part.tobytes() for part in parts.values())])).digest(BLOCK)
        )
        state = own
        for number in range(rounds):
            if fault is not None and self.attempt.epoch == 1 and number == int(fault[1] * rounds):
                _fail(fault[0])
            if number % max(rounds // _STEPS, 1) == 0:
                self.report(task, number, rounds, {})
            digest = hashlib.sha256(state)
            for first in range(0, BLOCK, piece):
                digest.update(block[first : first + piece])
            state = digest.digest()
        record = {"task": task, "foreign": foreign, "seconds": time.perf_counter() - start}
        self.log_metrics(METRICS, record)
        return np.frombuffer(own + hashlib.shake_128(state).digest(_REPORT), np.uint8)

    def finish(self, task: str, model: str, rounds: int, piece: int, **parts: Report) -> str:
        """Put the result of a model into storage and return where it is."""
        result = self.work(task, model, rounds, piece, None, **parts)
        path = result_path(self.run_uri, model)
        storage.write_bytes(path, result.tobytes())
        return path


def _fail(kind: str) -> None:
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "timeout":
            raise TimeoutError("injected")
        case "nan":
            raise NumericalError("injected")
        case "memory":
            raise MemoryError("injected")


def tag(model: str) -> bytes:
    """Return what marks the reports of a model."""
    return hashlib.sha256(model.encode()).digest()


def result_path(run: str, model: str) -> str:
    """Return where the result of a model is."""
    return storage.join(run, "results", model)
