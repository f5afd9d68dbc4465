"""Plans run in the order of their dependencies on real actors, and failures stop them with their cause."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.agent import Agent, Task
from coordinators.phase import Missing, PhaseCoordinator, Role, RunContext
from coordinators.schedule import SchedulingSettings
from phases.errors import ConfigError, CorpusError, ForgeError, NumericalError
from recovery.circuit_breaker import BreakerSettings
from recovery.strategies import Delays, RecoverySettings
from recovery.supervision import SupervisionSettings

ROOT = Path(__file__).resolve().parents[2]


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

    def make(self, task: str, size: int) -> np.ndarray[Any, Any]:
        return np.arange(size)

    def add(self, task: str, numbers: np.ndarray[Any, Any] | None) -> int:
        return -1 if numbers is None else int(numbers.sum())

    def endless(self, task: str) -> None:
        (Path(self.run_uri) / "pid").write_text(str(os.getpid()))
        while True:
            time.sleep(0.1)

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
    scheduling: SchedulingSettings = SchedulingSettings(),  # noqa: B008 - immutable
    cpus: float = 0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events, emit = recorder()
    context = RunContext(str(tmp_path), emit, recovery=recovery, supervision=supervision, scheduling=scheduling)

    async def go() -> dict[str, Any]:
        coordinator = PhaseCoordinator(context, "test")
        return await coordinator.run_plan(tasks, {task.agent: Role(Worker, cpus) for task in tasks})

    return asyncio.run(asyncio.wait_for(go(), 300)), events


def recorder() -> tuple[list[dict[str, Any]], Callable[..., None]]:
    """Return a list, and a function that puts events into it."""
    events: list[dict[str, Any]] = []

    def emit(kind: str, **data: Any) -> None:
        events.append({"kind": kind} | data)

    return events, emit


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


class Unmade(Agent):
    """Cannot be made."""

    def __init__(self, run: str, phase: str, name: str) -> None:
        super().__init__(run, phase, name)
        (Path(run) / f"made-{os.getpid()}").touch()
        raise CorpusError("weights.bin: not there; restore it")

    def work(self, task: str) -> None:
        raise NotImplementedError


@pytest.mark.usefixtures("ray_cluster")
def test_an_agent_that_cannot_be_made_is_not_tried_again(tmp_path: Path) -> None:
    events, emit = recorder()
    coordinator = PhaseCoordinator(RunContext(str(tmp_path), emit), "test")
    plan = coordinator.run_plan([Task("t", "one", "work")], {"one": Role(Unmade)})
    with pytest.raises(ForgeError, match=r"(?s)t: .*weights.bin: not there; restore it"):
        asyncio.run(asyncio.wait_for(plan, 300))
    (recovery,) = [event for event in events if event["kind"] == "recovery"]
    assert (recovery["error_class"], recovery["strategy"]) == ("validation", "escalate")
    assert len(list(tmp_path.glob("made-*"))) == 1


class Twin(Agent):
    """Leaves a file when it is made; at its first attempt it dies once there are two."""

    def __init__(self, run: str, phase: str, name: str) -> None:
        super().__init__(run, phase, name)
        (Path(run) / f"made-{os.getpid()}").touch()

    def work(self, task: str) -> tuple[int, list[str]]:
        first = Path(self.run_uri) / "first"
        if self.attempt.epoch > 1:
            return os.getpid(), first.read_text().split()
        while len(made := list(Path(self.run_uri).glob("made-*"))) < 2:
            time.sleep(0.05)
        first.write_text(" ".join(path.name for path in made))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.usefixtures("ray_cluster")
def test_a_spare_takes_over_the_task_of_an_agent_that_died(tmp_path: Path) -> None:
    _, emit = recorder()
    context = RunContext(str(tmp_path), emit, supervision=SupervisionSettings(spares=1))
    plan = PhaseCoordinator(context, "test").run_plan([Task("t", "one", "work")], {"one": Role(Twin)})
    successor, made_before = asyncio.run(asyncio.wait_for(plan, 300))["t"]
    assert f"made-{successor}" in made_before


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
@pytest.mark.parametrize(("kind", "reason"), [("freeze", "its process is stopped"), ("stall", "no progress")])
def test_a_frozen_agent_and_a_stuck_one_are_noticed_and_replaced(tmp_path: Path, kind: str, reason: str) -> None:
    deadlines = SupervisionSettings(hang_seconds=60, stall_seconds=5)
    reports, events = run(tmp_path, [Task("t", "one", "fail_first", {"kind": kind})], supervision=deadlines)
    assert reports["t"].startswith(kind)
    given_up = [event["reason"] for event in events if event["kind"] == "agent_given_up"]
    assert given_up[0].startswith(reason)
    assert set(strategies(events)) == {"restart"}


@pytest.mark.usefixtures("ray_cluster")
def test_what_others_take_as_input_stays_in_the_object_store(tmp_path: Path) -> None:
    tasks = [
        Task("numbers", "one", "make", {"size": 200_000}),
        Task("sum", "two", "add", inputs={"numbers": "numbers"}),
        Task("broken", "one", "crash", optional=True),
        Task("sum of nothing", "two", "add", inputs={"numbers": "broken"}),
    ]
    reports, _ = run(tmp_path, tasks)
    assert isinstance(reports["numbers"], ray.ObjectRef)
    assert reports["sum"] == sum(range(200_000))
    assert isinstance(reports["broken"], Missing)
    assert reports["sum of nothing"] == -1


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_exceeds_its_time_is_stopped_and_tried_again(tmp_path: Path) -> None:
    task = Task("t", "one", "fail_first", {"kind": "stall"}, timeout=8)
    reports, events = run(tmp_path, [task])
    assert reports["t"].startswith("stall")
    recovery = next(event for event in events if event["kind"] == "recovery")
    assert (recovery["error_class"], recovery["strategy"]) == ("transient", "retry")
    assert "no answer within 8 s" in recovery["error"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_cancelled_run_leaves_no_agent_behind(tmp_path: Path) -> None:
    _, emit = recorder()

    async def go() -> None:
        coordinator = PhaseCoordinator(RunContext(str(tmp_path), emit), "test")
        tasks = [Task("endless", "one", "endless"), Task("later", "two", "note", {"text": "x"}, after=("endless",))]
        running = asyncio.create_task(coordinator.run_plan(tasks, {"one": Role(Worker), "two": Role(Worker)}))
        while not (tmp_path / "pid").exists():
            await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not [name for name in coordinator._agents.names if coordinator._agents.alive(name)]
        status = Path("/proc", (tmp_path / "pid").read_text(), "stat")
        while status.exists() and " Z " not in status.read_text():
            await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(go(), 300))
    assert not (tmp_path / "notes").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_failing_agent_is_left_alone_by_its_breaker_and_then_probed(tmp_path: Path) -> None:
    settings = SchedulingSettings(breaker=BreakerSettings(minimum_calls=2, open_seconds=0.1))
    task = Task("t", "one", "fail_first", {"kind": "timeout", "times": 3})
    reports, events = run(tmp_path, [task], scheduling=settings)
    assert reports == {"t": "timeout 4 1"}
    states = [event["after"] for event in events if event["kind"] == "breaker"]
    assert states == ["open", "half_open", "open", "half_open", "closed"]
    assert {event["agent"] for event in events if event["kind"] == "breaker"} == {"one"}


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_the_tasks_own_fault_does_not_open_the_breaker(tmp_path: Path) -> None:
    settings = SchedulingSettings(breaker=BreakerSettings(minimum_calls=1))
    task = Task("t", "one", "fail_first", {"kind": "nan", "times": 2}, resumes=True)
    _, events = run(tmp_path, [task], scheduling=settings)
    assert strategies(events) == ["rollback", "rollback"]
    assert not [event for event in events if event["kind"] == "breaker"]


@pytest.mark.usefixtures("ray_cluster")
def test_an_idle_agent_makes_way_for_one_that_waits_for_its_resources(tmp_path: Path) -> None:
    """Of 4 CPUs each agent holds 3; the first has nothing to do until the second is done."""
    tasks = [
        Task("a", "one", "note", {"text": "a"}),
        Task("b", "two", "note", {"text": "b"}, after=("a",)),
        Task("c", "one", "note", {"text": "c"}, after=("b",)),
    ]
    reports, _ = run(tmp_path, tasks, scheduling=SchedulingSettings(make_way_seconds=1), cpus=3)
    assert reports == {"a": "A", "b": "B", "c": "C"}


@pytest.mark.slow
def test_a_report_that_was_lost_with_its_node_is_made_again(tmp_path: Path) -> None:
    """In a process of its own, which may start a cluster of its own."""
    code = f"from tests.coordinators.test_phase import lose_a_report; lose_a_report({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def lose_a_report(folder: str) -> None:
    """Lose the node that holds the first task's report before the third takes it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    doomed = cluster.add_node(num_cpus=4, object_store_memory=100 << 20)
    ray.init(address=cluster.address, log_to_driver=False)
    events, emit = recorder()

    def lose_node(kind: str, **data: Any) -> None:
        emit(kind, **data)
        if kind == "task_finished" and data["task"] == "between":
            cluster.add_node(num_cpus=4, object_store_memory=100 << 20)
            cluster.remove_node(doomed, allow_graceful=False)

    tasks = [
        Task("numbers", "one", "make", {"size": 200_000}),
        Task("between", "two", "note", {"text": "x"}, after=("numbers",)),
        Task("sum", "three", "add", inputs={"numbers": "numbers"}, after=("between",)),
    ]
    roles = {"one": Role(Worker, cpus=4), "two": Role(Worker), "three": Role(Worker)}
    try:
        coordinator = PhaseCoordinator(RunContext(folder, lose_node), "test")
        reports = asyncio.run(asyncio.wait_for(coordinator.run_plan(tasks, roles), 200))
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert reports["sum"] == sum(range(200_000))
    assert [event["task"] for event in events if event["kind"] == "task_finished"].count("numbers") == 2


@pytest.mark.usefixtures("ray_cluster")
def test_models_share_an_agent_by_turns_and_keep_their_reports(tmp_path: Path) -> None:
    events, emit = recorder()
    roles = {"one": Role(Worker)}
    plans = {
        model: [Task(f"t{number}", "one", "note", {"text": f"{model}{number}"}) for number in range(count)]
        for model, count in (("big", 6), ("small", 2))
    }

    async def go() -> list[dict[str, Any]]:
        coordinator = PhaseCoordinator(RunContext(str(tmp_path), emit), "test")
        runs = [asyncio.create_task(coordinator.run_plan(plan, roles, model=m)) for m, plan in plans.items()]
        await asyncio.sleep(0)
        with pytest.raises(ConfigError, match=r"big/t0.*runs already"):
            await coordinator.run_plan(plans["big"], roles, model="big")
        with pytest.raises(ConfigError, match=r"'one'.*another role"):
            await coordinator.run_plan([], {"one": Role(Worker, cpus=1)}, model="third")
        return await asyncio.gather(*runs)

    reports = asyncio.run(asyncio.wait_for(go(), 300))
    assert reports == [{f"t{n}": f"{m.upper()}{n}" for n in range(len(plan))} for m, plan in plans.items()]
    order = [event["task"].split("/")[0] for event in events if event["kind"] == "task_finished"]
    assert order[0] == "big"
    assert order[:4].count("small") == 2  # the first task has waited for the agent, for which its model waits in turn
