"""The plan strikes every agent in every way at points that it comes by; what is lost, doubled or other shows."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from benchmarks.baking_faults import KINDS, TIMED, accounted, agents_of, artifacts, plan, read_messages
from benchmarks.chaos_judge import Verdict
from benchmarks.chaos_plan import task_of
from benchmarks.chaos_run import Outcome
from phases.baking.evidence import AGENTS, FOLDER
from recovery.faults import Fault, Hit, Kind, Point
from recovery.journal import Event

WORK = {
    "hand_off": "BakingCoordinator",
    "probe": "HardwareAdapter",
    "instruct": "ModelOptimizer",
    "bake": "ModelOptimizer",
    "validate": "QualityValidator",
    "ablate": "GraphOptimizer",
    "transform": "ModelOptimizer",
    "compare": "InferenceAccelerator",
    "measure memory": "MemoryOptimizer",
    "profile": "PerformanceProfiler",
    "package": "DeploymentPreparer",
    "audit": "QualityValidator",
    "finish": "BakingCoordinator",
}


def _clean() -> Outcome:
    """Return what an undisturbed run comes by, in short."""
    points = [Point(hook, f"baking/{task}") for task in WORK for hook in ("attempt", "task.worked", "task.committed")]
    points += [Point("progress", f"baking/{task}/0") for task in (*WORK, "model", "corpus")]
    points += [Point("progress", f"baking/{task}/{step}") for task in ("instruct", "bake") for step in range(1, 9)]
    points += [Point("checkpoint", f"{task}/{step}") for task in ("instruct", "bake") for step in (2, 4, 6)]
    evidence = [f"{agent}-{'measure' if 'mem' in task else task}.json" for task, agent in WORK.items()][:-1]
    points += [Point("write", f"{FOLDER}/evidence/{name}") for name in evidence]
    points += [Point("write", f"{FOLDER}/checkpoints/instruct/{step}/state.safetensors") for step in (2, 4, 6)]
    points += [Point("write", path) for path in (f"{FOLDER}/result.json", f"{FOLDER}/baked_model.pt", "config.yaml")]
    points += [Point("write", f"{FOLDER}/optimise/exported-a.onnx"), Point("write", f"{FOLDER}/model/config.json")]
    events = [
        Event(n, "task_started", f"t{n}", {"phase": "baking", "task": task, "agent": agent})
        for n, (task, agent) in enumerate({**WORK, "model": "corpus", "corpus": "corpus"}.items())
    ]
    return Outcome(ended=True, trace=[Hit(point, float(n), 1) for n, point in enumerate(points)], events=events)


def test_every_agent_meets_every_kind_equally_often() -> None:
    clean = _clean()
    faults = plan(3, clean, 4 * len(KINDS) * len(AGENTS))
    agents, known = agents_of(clean), {hit.point for hit in clean.trace}
    met = Counter((agents[task_of(f.point)], _what(f.kind)) for f in faults)
    assert met == {(agent, what): 4 for agent in AGENTS for what in KINDS}
    assert {fault.point for fault in faults} <= known
    places = Counter(f.point for f in faults if "/checkpoints/" in f.point.step and f.point.hook == "write")
    assert set(places.values()) == {1}, "a checkpoint that was torn is written again elsewhere"
    assert plan(3, clean, 60) == plan(3, clean, 60)
    assert plan(4, clean, 60) != plan(3, clean, 60)


def _what(kind: Kind) -> str:
    return next(what for what, options in KINDS.items() if kind in {option for option, _ in options})


def test_faults_of_a_point_come_one_after_the_other_and_slow_ones_last() -> None:
    by_point = defaultdict[Point, list[Fault]](list)
    for fault in plan(0, _clean(), 200):
        by_point[fault.point].append(fault)
    assert max(map(len, by_point.values())) > 3
    for faults in by_point.values():
        ordered = sorted(faults, key=lambda fault: fault.hit)
        assert [fault.hit for fault in ordered] == list(range(1, len(faults) + 1))
        assert Kind.SLOW not in [fault.kind for fault in ordered[:-1]]


def test_only_points_of_agents_are_struck() -> None:
    struck = {fault.point.step for fault in plan(1, _clean(), 200)}
    assert not struck & {"baking/model/0", "baking/corpus/0", f"{FOLDER}/result.json", "config.yaml"}
    assert f"{FOLDER}/optimise/exported-a.onnx" not in struck  # several tasks may write it


@pytest.mark.parametrize(
    ("path", "task"),
    [
        ("checkpoints/bake/0000000002/state.json", "bake"),
        ("evidence/MemoryOptimizer-measure.json", "measure memory"),
        ("evidence/BakingCoordinator-hand_off.json", "hand_off"),
        ("steerable/model.safetensors", "instruct"),
        ("baked_model.pt", "bake"),
        ("error_recovery_log.json", "finish"),
    ],
)
def test_a_file_belongs_to_the_task_that_writes_it(path: str, task: str) -> None:
    assert task_of(Point("write", f"{FOLDER}/{path}")) == f"baking/{task}"


def _recovery(number: int, task: str, strategy: str) -> Event:
    data = {"phase": "baking", "task": task, "strategy": strategy}
    return Event(number, "recovery", f"t{number}", data)


def test_a_fault_without_a_recovery_of_its_own_is_not_recovered_from() -> None:
    faults = [Fault(Kind.KILL, Point("progress", "baking/bake/1"), hit) for hit in (1, 2)]
    verdicts = [Verdict(fault, "restart", 1.0) for fault in faults]
    slow = Verdict(Fault(Kind.SLOW, Point("progress", "baking/bake/2")), "wait", 0.1)
    outcome = Outcome(events=[_recovery(1, "bake", "restart"), _recovery(2, "bake", "retry")])
    assert [v.seconds for v in accounted([*verdicts, slow], outcome)] == [1.0, None, 0.1]
    outcome.events.append(_recovery(3, "bake", "restart"))
    assert [v.seconds for v in accounted([*verdicts, slow], outcome)] == [1.0, 1.0, 0.1]


def _told(run: Path, *, leave_out: int | None = None, twice: int | None = None) -> list[Event]:
    """Return a journal and write the logs of it, with an entry missing or there twice."""
    events = [
        Event(n, kind, f"t{n}", {"phase": "baking", "task": task})
        for n, (task, kind) in enumerate([(t, k) for t in ("a", "finish") for k in ("task_started", "task_finished")])
    ]
    entries = [{"kind": event.kind, "time": event.time} | event.data for event in events[:-1]]
    entries += entries[twice : twice + 1] if twice is not None else []
    kept = [entry for n, entry in enumerate(entries) if n != leave_out]
    (run / FOLDER).mkdir(exist_ok=True)
    (run / FOLDER / "agent_coordination_log.json").write_text(json.dumps(kept))
    (run / FOLDER / "error_recovery_log.json").write_text("[]")
    return events


def test_lost_and_doubled_messages_are_counted(tmp_path: Path) -> None:
    assert read_messages(tmp_path, _told(tmp_path)) == (4, 0, 0)
    assert read_messages(tmp_path, _told(tmp_path, leave_out=1)) == (4, 1, 0)
    assert read_messages(tmp_path, _told(tmp_path, twice=1)) == (4, 0, 1)
    events = _told(tmp_path)
    assert read_messages(tmp_path, [*events, events[1]])[1:] == (1, 1)  # its end is told twice, and once in the log
    assert read_messages(tmp_path, [event for event in events if event.kind == "task_started"])[1] >= 1


def test_artifacts_are_all_files_that_hold_no_timing(tmp_path: Path) -> None:
    for name in ("model/model.safetensors", "evidence/ModelOptimizer-bake.json", *list(TIMED)[:2], "model/.tmp-torn"):
        path = tmp_path / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert list(artifacts(tmp_path)) == ["evidence/ModelOptimizer-bake.json", "model/model.safetensors"]
