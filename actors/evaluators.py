"""A pool of evaluator actors that survives their failures.

Candidates are handed out in order; a failed evaluation is tried again, on another actor where its own has died, is
frozen or takes too long, and given up after so many attempts. Which worker did what, and what failed on the way,
leaves no trace in the results.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.processes import Whereabouts
from phases.evomerge.engine import Candidate
from phases.evomerge.errors import MergeError
from phases.evomerge.fitness import Measured
from recovery.faults import hook

_POLL_SECONDS = 1.0


@dataclass
class _Job:
    candidate: Candidate
    attempts: int = 0
    started: float = 0.0
    stopped: bool = False  # at the last look


class EvaluatorPool:
    """Keeps `size` actors alive that `spawn` starts.

    An actor has `measure(genome) -> Measured` and `lose(genome, reason)`, which notes that a candidate is given up.
    """

    def __init__(self, spawn: Callable[[], Any], size: int, *, attempts: int, timeout: float) -> None:
        self._spawn, self._attempts, self._timeout = spawn, attempts, timeout
        self._where: dict[Any, Any] = {}  # actor -> a reference to its whereabouts
        self._free = deque(self._started() for _ in range(size))
        self._busy: dict[Any, tuple[Any, _Job]] = {}
        self.failures = 0

    def measure(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Measured | None]]:
        """Yield each candidate with its measurement as they come in; None for one that is lost."""
        waiting = deque(_Job(candidate) for candidate in candidates)
        while waiting or self._busy:
            while waiting and self._free:
                self._start(self._free.popleft(), waiting.popleft())
            done, _ = ray.wait(list(self._busy), timeout=_POLL_SECONDS)
            for ref, late in (dict.fromkeys(done, "") | self._overdue(done)).items():
                actor, job = self._busy.pop(ref)
                measured, again = self._result(ref, actor, job, late)
                if again:
                    waiting.appendleft(job)
                else:
                    yield job.candidate, measured

    def stop(self) -> None:
        """Kill all actors."""
        for actor in [*self._free, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)
        self._free.clear()
        self._busy.clear()

    def _start(self, actor: Any, job: _Job) -> None:
        ray.wait([self._where[actor]], timeout=self._timeout)  # one that froze before could not be looked at
        hook("evaluator.send", job.candidate.generation, job.candidate.slot)
        job.attempts += 1
        job.started, job.stopped = time.monotonic(), False
        self._busy[actor.measure.remote(dict(job.candidate.genome))] = actor, job

    def _overdue(self, done: Sequence[Any]) -> dict[Any, str]:
        """Return the calls that are not waited for any longer, and why."""
        late, now = dict[Any, str](), time.monotonic()
        for ref, (actor, job) in self._busy.items():
            if ref in done:
                continue
            if now - job.started > self._timeout:
                late[ref] = f"no answer in {self._timeout:g} s"
            elif now - job.started > _POLL_SECONDS:
                before, job.stopped = job.stopped, self._is_stopped(actor)
                if before and job.stopped:
                    late[ref] = "its process is stopped"
        return late

    def _is_stopped(self, actor: Any) -> bool:
        known, _ = ray.wait([self._where[actor]], timeout=0)
        try:
            return bool(known) and bool(ray.get(known[0]).stopped())
        except RayError:
            return False  # it is dead, which its call tells

    def _result(self, ref: Any, actor: Any, job: _Job, late: str) -> tuple[Measured | None, bool]:
        """Return the measurement, or None and whether to try again; put the actor, or a new one, back."""
        if late:
            return self._failed(job, self._replace(actor), late, final=False)
        try:
            measured: Measured = ray.get(ref)
        except RayTaskError as error:
            # The same merge would be refused again.
            return self._failed(job, actor, str(error.cause), final=isinstance(error.cause, MergeError))
        except RayError as error:
            return self._failed(job, self._replace(actor), str(error), final=False)
        if not measured.finite:
            return self._failed(job, actor, "a measurement that is not finite", final=False)
        self._free.append(actor)
        return measured, False

    def _failed(self, job: _Job, actor: Any, reason: str, *, final: bool) -> tuple[None, bool]:
        self.failures += 1
        again = not final and job.attempts < self._attempts
        if not again:
            ray.get(actor.lose.remote(dict(job.candidate.genome), reason), timeout=self._timeout)
        self._free.append(actor)
        return None, again

    def _replace(self, actor: Any) -> Any:
        ray.kill(actor)
        del self._where[actor]
        return self._started()

    def _started(self) -> Any:
        actor = self._spawn()
        self._where[actor] = actor.__ray_call__.remote(lambda _: Whereabouts.here())
        return actor
