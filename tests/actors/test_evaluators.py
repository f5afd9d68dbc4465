"""The pool measures every candidate whatever its actors do: throw, die, hang or refuse."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.evaluators import EvaluatorPool
from phases.evomerge.engine import Candidate
from phases.evomerge.errors import MergeError
from phases.evomerge.fitness import Measured


class Evaluator:
    """Misbehaves as the genome says, as often as it says; attempts are counted in files."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def measure(self, genome: dict[str, Any]) -> Measured:
        name, kind, times = genome["name"], genome["kind"], genome["times"]
        attempt = len(list(self.folder.glob(f"{name}-*")))
        (self.folder / f"{name}-{attempt}").touch()
        if attempt < times:
            if kind == "throw":
                raise ValueError("not today")
            if kind == "die":
                os._exit(1)
            if kind == "nan":
                return Measured(perplexity=float("nan"), accuracy=0, flops=1, bytes=1)
            if kind == "hang":
                time.sleep(60)
            if kind == "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            if kind == "refuse":
                raise MergeError("these do not merge")
        return Measured(perplexity=float(name), accuracy=0, flops=1, bytes=1)

    def lose(self, genome: dict[str, Any], reason: str) -> None:
        (self.folder / f"lost-{genome['name']}").write_text(reason)


def pool_of(folder: Path, size: int = 2, attempts: int = 3, timeout: float = 60) -> EvaluatorPool:
    remote: Any = ray.remote
    return EvaluatorPool(
        lambda: remote(num_cpus=0)(Evaluator).remote(str(folder)), size, attempts=attempts, timeout=timeout
    )


def candidates(*kinds: tuple[str, int]) -> list[Candidate]:
    return [Candidate(0, i, {"name": i, "kind": kind, "times": times}) for i, (kind, times) in enumerate(kinds)]


@pytest.mark.usefixtures("ray_cluster")
def test_failures_leave_no_trace_in_the_results(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)
    asked = candidates(("none", 0), ("throw", 2), ("die", 1), ("nan", 1), ("die", 2))
    found = {candidate.slot: measured for candidate, measured in pool.measure(asked)}
    pool.stop()
    assert {slot: measured.perplexity for slot, measured in found.items() if measured} == dict(
        enumerate(map(float, range(5)))
    )
    assert pool.failures == 6


@pytest.mark.usefixtures("ray_cluster")
def test_a_candidate_is_given_up_after_its_attempts_and_a_refused_one_at_once(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, size=1)
    found = {c.slot: m for c, m in pool.measure(candidates(("throw", 9), ("refuse", 9), ("none", 0)))}
    pool.stop()
    assert found[0] is None
    assert found[1] is None
    assert found[2] is not None
    assert len(list(tmp_path.glob("0-*"))) == 3
    assert len(list(tmp_path.glob("1-*"))) == 1
    assert (tmp_path / "lost-0").read_text() == "not today"
    assert "these do not merge" in (tmp_path / "lost-1").read_text()


@pytest.mark.usefixtures("ray_cluster")
def test_a_frozen_evaluator_is_replaced_long_before_its_time_is_over(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, timeout=3600)
    found = {candidate.slot: measured for candidate, measured in pool.measure(candidates(("freeze", 1), ("none", 0)))}
    pool.stop()
    assert found.keys() == {0, 1}
    assert None not in found.values()
    assert pool.failures == 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_hung_evaluator_is_replaced(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, size=1, timeout=4)
    ((_, measured),) = pool.measure(candidates(("hang", 1)))
    pool.stop()
    assert measured is not None
