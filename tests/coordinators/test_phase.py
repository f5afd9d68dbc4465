"""Plans run in the order of their dependencies on real actors, and failures stop them with their cause."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from actors.agent import Agent, Task
from coordinators.phase import PhaseCoordinator, Role, check_plan
from phases.errors import ConfigError, CorpusError, ForgeError


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
        import os

        os._exit(1)


def run(tmp_path: Path, tasks: list[Task]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    async def go() -> dict[str, Any]:
        coordinator = PhaseCoordinator(str(tmp_path), "test", lambda kind, **data: events.append({"kind": kind} | data))
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
        ("vanish", ForgeError, "t: ActorDiedError"),
    ],
)
def test_a_failure_names_task_and_cause(tmp_path: Path, method: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, [Task("t", "one", method)])


def test_impossible_plans_are_refused() -> None:
    roles = {"one": Role(Worker)}
    with pytest.raises(ConfigError, match="cycle"):
        check_plan([Task("a", "one", "note", after=("b",)), Task("b", "one", "note", after=("a",))], roles)
    with pytest.raises(ConfigError, match="waits for unknown tasks"):
        check_plan([Task("a", "one", "note", after=("nothing",))], roles)
    with pytest.raises(ConfigError, match="has no agent"):
        check_plan([Task("a", "two", "note")], roles)
