"""Plans run in the order of their dependencies on real actors, and failures stop them with their cause."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from actors.agent import Agent, Task
from coordinators.phase import Missing, PhaseCoordinator, Role, RunContext
from phases.errors import CorpusError, ForgeError, NumericalError
from recovery.strategies import Delays, RecoverySettings
from recovery.supervision import SupervisionSettings


class Worker(Agent):
    """Does little, visibly."""

    def note(self, task: str, text: str) -> str:
        with open(Path(self.run_uri) / "notes", "a") as file:
            file.write(text + "\n")
        return text.upper()

    def slow(self, task: str) -> None:
        for step in range(20):
            self.report(task, step + 1, 20, {"loss": 1.0 / (step + 1)})
            time.sleep(0.1)

    def refuse(self, task: str) -> None:
        raise CorpusError("x.txt: empty; give it text")

    def crash(self, task: str) -> None:
        raise ZeroDivisionError("nothing to divide by")

    def vanish(self, task: str) -> None:
        os._exit(1)

    def fail_first(self, task: str, kind: str, times: int = 1) -> str:
        """Fail `times` times, counted in files, then say with what it succeeded."""
        count = len(list(Path(self.run_uri).glob(f"{task}-*")))
        (Path(self.run_uri) / f"{task}-{count}").touch()
        if count < times:
            match kind:
                case "timeout":
                    raise TimeoutError("nobody answers")
                case "crash":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "freeze":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "stall":
                    time.sleep(60)
                case "nan":
                    raise NumericalError("loss is nan")
                case "memory":
                    raise MemoryError("too big")
        return f"{kind} {self.attempt.epoch} {self.attempt.learning_rate_factor:g}"


QUICK = RecoverySettings(delays=Delays(initial_seconds=0, jitter_seconds=0))


def run(
    tmp_path: Path,
    tasks: list[Task],
    recovery: RecoverySettings = QUICK,
    supervision: SupervisionSettings = SupervisionSettings(),  # noqa: B008 - immutable
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    def emit(kind: str, **data: Any) -> None:
        events.append({"kind": kind} | data)

    context = RunContext(str(tmp_path), emit, recovery=recovery, supervision=supervision)

    async def go() -> dict[str, Any]:
        coordinator = PhaseCoordinator(context, "test")
        return await coordinator.run_plan(tasks, {task.agent: Role(Worker) for task in tasks})

    return asyncio.run(go()), events


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_wait_for_one_another_and_report(tmp_path: Path) -> None:
    tasks = [
        Task("c", "one", "note", {"text": "c"}, after=("a", "b")),
        Task("b", "two", "note", {"text": "b"}, after=("a",)),
        Task("a", "one", "note", {"text": "a"}),
    ]
    reports, events = run(tmp_path, tasks)
    assert reports == {"a": "A", "b": "B", "c": "C"}
    assert (tmp_path / "notes").read_text().split() == ["a", "b", "c"]
    assert [e["task"] for e in events if e["kind"] == "task_finished"] == ["a", "b", "c"]


@pytest.mark.usefixtures("ray_cluster")
def test_progress_is_seen_while_the_work_goes_on(tmp_path: Path) -> None:
    _, events = run(tmp_path, [Task("s", "one", "slow")])
    steps = [event["step"] for event in events if event["kind"] == "progress"]
    assert len(steps) >= 2
    assert steps == sorted(steps)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("refuse", CorpusError, "t: x.txt: empty; give it text"),
        ("crash", ForgeError, "t: ZeroDivisionError: nothing to divide by"),
        ("vanish", ForgeError, "(?s)t: ActorDiedError.*used 3 times"),
    ],
)
def test_a_failure_names_task_and_cause(tmp_path: Path, method: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, [Task("t", "one", method)])


def strategies(events: list[dict[str, Any]]) -> list[str]:
    return [event["strategy"] for event in events if event["kind"] == "recovery"]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("kind", "times", "report", "used"),
    [
        ("timeout", 2, "timeout 3 1", ["retry", "retry"]),
        ("crash", 1, "crash 2 1", ["restart"]),
        ("nan", 2, "nan 3 0.25", ["rollback", "rollback"]),
    ],
)
def test_a_failure_is_recovered_by_the_strategy_of_its_class(
    tmp_path: Path, kind: str, times: int, report: str, used: list[str]
) -> None:
    task = Task("t", "one", "fail_first", {"kind": kind, "times": times}, resumes=True)
    reports, events = run(tmp_path, [task])
    assert reports == {"t": report}
    assert strategies(events) == used


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_does_not_fit_falls_back_to_its_smaller_variant(tmp_path: Path) -> None:
    smaller = {"kind": "small", "times": 0}
    reports, events = run(tmp_path, [Task("t", "one", "fail_first", {"kind": "memory"}, fallback=smaller)])
    assert reports == {"t": "small 2 1"}
    assert strategies(events) == ["fallback"]


@pytest.mark.usefixtures("ray_cluster")
def test_the_phase_goes_on_without_an_optional_task_and_what_needs_it(tmp_path: Path) -> None:
    tasks = [
        Task("broken", "one", "crash", optional=True),
        Task("needs it", "one", "note", {"text": "x"}, after=("broken",), optional=True),
        Task("goes on", "two", "note", {"text": "y"}, after=("broken", "needs it")),
    ]
    reports, events = run(tmp_path, tasks)
    assert isinstance(reports["broken"], Missing)
    assert "nothing to divide by" in reports["broken"].reason
    assert isinstance(reports["needs it"], Missing)
    assert reports["goes on"] == "Y"
    assert strategies(events) == ["isolate"]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("kind", "reason"), [("freeze", "no sign of life"), ("stall", "no progress")])
def test_a_frozen_agent_and_a_stuck_one_are_noticed_and_replaced(tmp_path: Path, kind: str, reason: str) -> None:
    deadlines = SupervisionSettings(poll_seconds=0.1, hang_seconds=6 if kind == "freeze" else 60, stall_seconds=5)
    reports, events = run(tmp_path, [Task("t", "one", "fail_first", {"kind": kind})], supervision=deadlines)
    assert reports["t"].startswith(kind)
    given_up = [event["reason"] for event in events if event["kind"] == "agent_given_up"]
    assert given_up[0].startswith(reason)
    assert set(strategies(events)) == {"restart"}
