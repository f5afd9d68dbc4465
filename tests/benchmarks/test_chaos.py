"""What a chaos run is judged by: a fault that was not recovered from, not fired, or fired twice must show."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos_judge import executed_intervals, judge, judge_stops, planned_fired, same_models
from benchmarks.chaos_plan import CHANGED_BYTES, QUICK, SAME_BYTES, points_of, stopping, storm, strategy, task_of
from benchmarks.chaos_run import Outcome, Stop
from recovery.faults import Fault, Fired, Hit, Kind, Point, draw
from recovery.journal import Event

TASK = "cognate/train reasoning"


def progress(step: int, task: str = TASK) -> Point:
    return Point("progress", f"{task}/{step}")


def hits(*items: tuple[Point, int], start: float = 0.0) -> list[Hit]:
    """Return hits of (point, pid), a second apart."""
    return [Hit(point, start + second, pid) for second, (point, pid) in enumerate(items)]


def recovery(strategy: str) -> Event:
    return Event(1, "recovery", "", {"phase": "cognate", "task": "train reasoning", "strategy": strategy})


CLEAN = Outcome(ended=True, hashes={"cognate/reasoning": "a"}, trace=hits(*((progress(step), 1) for step in range(9))))
KILL = Fault(Kind.KILL, progress(3))


def killed_and_restarted(*after: tuple[Point, int]) -> Outcome:
    before = ((progress(step), 1) for step in range(4))
    return Outcome(
        ended=True,
        hashes=dict(CLEAN.hashes),
        planned=[KILL],
        fired=[Fired(KILL, 3.0, 1)],
        trace=hits(*before, *after),
        events=[recovery("restart")],
    )


GOOD = killed_and_restarted((progress(0), 2), (progress(2), 2), (progress(3), 2), (progress(4), 2))


def test_a_death_is_recovered_from_when_another_process_is_at_its_point() -> None:
    (verdict,) = judge(GOOD, CLEAN)
    assert (verdict.strategy, verdict.seconds) == ("restart", 3.0)
    assert planned_fired(GOOD)
    assert same_models(GOOD, CLEAN) == [True]


def test_work_that_goes_on_from_a_later_checkpoint_counts() -> None:
    (verdict,) = judge(killed_and_restarted((progress(5), 2)), CLEAN)
    assert verdict.seconds == 1.0


def test_what_strikes_at_the_last_point_is_recovered_from_by_the_end() -> None:
    last = Fault(Kind.STOP, Point("phase.sealed", "bitnet"))
    clean = replace(CLEAN, trace=[*CLEAN.trace, Hit(last.point, 9.0, 1)])
    finished = Event(2, "run_finished", "1970-01-01T00:00:12+00:00", {})
    outcome = replace(clean, planned=[last], fired=[Fired(last, 9.0, 1)], events=[finished])
    assert [verdict.seconds for verdict in judge(outcome, clean)] == [3.0]
    assert [verdict.seconds for verdict in judge(replace(outcome, ended=False), clean)] == [None]


@pytest.mark.parametrize(
    ("path", "task"),
    [
        ("01_cognate/checkpoints/warm_up/0000000008/manifest.json", "cognate/train warm_up"),
        ("01_cognate/models/reasoning/model.safetensors", "cognate/train reasoning"),
        ("02_evomerge/checkpoints/0000000001/manifest.json", "evomerge/evolve"),
        ("03_quietstar/checkpoints/control/0000000004/state.json", "quietstar/train control"),
        ("04_bitnet/checkpoints/ternary 0.004/0000000004/state.json", "bitnet/train ternary 0.004"),
    ],
)
def test_a_write_belongs_to_the_task_that_makes_it(path: str, task: str) -> None:
    assert task_of(Point("write", path)) == task


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, ended=False),
        replace(GOOD, fired=[]),
        replace(GOOD, events=[]),
        replace(GOOD, events=[recovery("retry")]),
        killed_and_restarted((progress(3), 1)),
        killed_and_restarted((progress(0), 2)),
        killed_and_restarted((progress(8, "cognate/train memory"), 2)),
    ],
    ids=["not ended", "not fired", "not journalled", "other strategy", "same pid", "not so far", "other task"],
)
def test_a_death_that_nobody_recovered_from_shows(bad: Outcome) -> None:
    assert [verdict.seconds for verdict in judge(bad, CLEAN)] == [None]


def test_steps_are_counted_in_intervals_and_beginnings_are_no_steps() -> None:
    assert executed_intervals(CLEAN) == 2.0
    assert executed_intervals(GOOD) == 6 / 4


def test_a_model_that_differs_or_is_missing_shows() -> None:
    assert same_models(replace(GOOD, hashes={"cognate/reasoning": "b"}), CLEAN) == [False]
    assert same_models(replace(GOOD, hashes={}), CLEAN) == [False]
    assert same_models(replace(GOOD, hashes={}), CLEAN, {"cognate/reasoning"}) == []


def test_a_stop_is_right_once_by_name_and_readable() -> None:
    cause = Fault(Kind.VALIDATION, Point("task.worked", "cognate/corpus"))
    named = Stop("error: injected at task.worked cognate/corpus", 1, True)
    good = Outcome(ended=True, planned=[cause], stops=[named])
    assert judge_stops(good) == [True]
    assert judge_stops(replace(good, stops=[])) == [False]
    assert judge_stops(replace(good, stops=[named, named])) == [False]
    assert judge_stops(replace(good, stops=[replace(named, message="error: something")])) == [False]
    assert judge_stops(replace(good, stops=[replace(named, readable=False)])) == [False]
    assert judge_stops(replace(good, ended=False)) == [False]


def clean_points() -> list[Point]:
    """Return points like those of an undisturbed run."""
    roles = ("warm_up", "reasoning", "memory_integration", "adaptive_computation")
    trained = [f"cognate/train {role}" for role in roles]
    tasks = [*trained, *(f"cognate/evaluate {role}" for role in roles[1:]), "cognate/corpus", "cognate/choose"]
    tasks += ["evomerge/evolve", "evomerge/measure winner"]
    points = [Point("progress", f"{task}/{step}") for task in trained for step in range(25)]
    points += [Point("progress", f"{task}/{step}") for task in tasks[4:] for step in range(3)]
    points += [
        Point(hook, task) for hook in ("attempt", "attempted", "task.worked", "task.committed") for task in tasks
    ]
    points += [Point("evaluate", role) for role in roles[1:]]
    points += [Point("checkpoint", f"{role}/{step}") for role in roles for step in (4, 8, 12, 16, 20)]
    files = [f"01_cognate/checkpoints/{role}/0000000008/state.json" for role in roles]
    points += [Point("write", path) for path in (*files, "01_cognate/models/reasoning/config.json")]
    points += [Point("measure", f"{key:064x}") for key in range(8)]
    points += [Point("evaluator.send", f"{generation}/{slot}") for generation in range(3) for slot in range(4)]
    return points + [Point(hook, phase) for hook in ("phase.done", "phase.sealed") for phase in ("cognate", "evomerge")]


@pytest.mark.parametrize("seed", range(3))
def test_every_wish_finds_a_point_and_every_fault_a_task(seed: int) -> None:
    points = clean_points()
    faults = storm(seed, points, 2 * len(SAME_BYTES)) + draw(seed, points, CHANGED_BYTES)
    assert {fault.kind for fault in faults} >= {kind for kind, _ in SAME_BYTES} | {kind for kind, _ in QUICK}
    for fault in faults:
        assert task_of(fault.point) or fault.point.hook in ("phase.done", "phase.sealed")
    assert {strategy(fault) for fault in faults} == {
        *("retry", "restart", "pipeline restart", "resume", "wait", "evaluator replaced"),
        *("rollback", "fallback", "isolate"),
    }
    poisoned = [fault for fault in stopping(seed, points, 7) if fault.kind is Kind.TRANSIENT]
    assert [fault.hit for fault in poisoned] == list(range(1, 8))
    assert len({fault.point for fault in poisoned}) == 1


def test_the_order_in_which_points_were_seen_does_not_matter() -> None:
    trace = hits(*((point, 1) for point in clean_points()))
    assert storm(0, points_of(trace), 8) == storm(0, points_of(list(reversed(trace))), 8)


@pytest.mark.slow
def test_messages_under_faults_are_handled_once(tmp_path: Path) -> None:
    """In a process of its own, since it starts a Ray of its own."""
    program = (
        "import sys; from pathlib import Path; from benchmarks.chaos_flow import carry, plan\n"
        "faults = plan(0, 5)\n"
        "fired, lost, twice, _ = carry(Path(sys.argv[1]), faults)\n"
        "print({item.fault for item in fired} == set(faults), lost, twice)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "True 0 0"


@pytest.mark.slow
def test_a_cluster_leaves_nothing_behind(tmp_path: Path) -> None:
    """Also where the harness itself is told to end."""
    program = (
        "import sys; from pathlib import Path; from benchmarks.chaos_cluster import LocalCluster\n"
        "with LocalCluster(Path(sys.argv[1])) as cluster:\n"
        "    print(len(list(cluster.processes())), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert int(process.stdout.readline()) >= 5
    process.terminate()
    assert process.wait(60) == 1
    mark = f"FORGE_FAULTS={tmp_path}".encode()
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if mark in _content(path)]
    assert left == []
    shutil.rmtree(tmp_path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
