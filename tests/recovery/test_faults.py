"""The plan is a function of the seed; a fault fires once in the life of a run; the log of what fired is the plan."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phases import storage
from phases.errors import ArtifactError, NumericalError
from recovery import faults
from recovery.classify import Classifier
from recovery.faults import ENVIRONMENT, Fault, FaultLog, Kind, Point, draw, hook
from recovery.taxonomy import ErrorClass

ROOT = Path(__file__).parent.parent.parent
POINTS = [Point("progress", f"train/{step}") for step in range(20)] + [Point("write", f"file-{n}") for n in range(5)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FaultLog]:
    """A log whose plan this process follows once it is installed."""
    yield FaultLog(tmp_path / "faults")
    faults._injector = None
    storage._witnesses.clear()


def follow(log: FaultLog, *planned: Fault) -> None:
    log.write_plan(str(log.folder.parent / "run"), planned)
    faults.install(log)


def is_progress(point: Point) -> bool:
    return point.hook == "progress"


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 20))
def test_a_plan_is_a_function_of_the_seed_and_not_of_the_order_of_points(seed: int, count: int) -> None:
    wanted = [(Kind.KILL, is_progress)] * count
    plan = draw(seed, POINTS, wanted)
    assert plan == draw(seed, list(reversed(POINTS)), wanted)
    assert len({fault.point for fault in plan}) == count
    assert all(fault.point.hook == "progress" for fault in plan)


def test_other_seeds_have_other_plans() -> None:
    plans = {tuple(draw(seed, POINTS, [(Kind.KILL, is_progress)] * 3)) for seed in range(20)}
    assert len(plans) == 20


def test_a_wish_that_no_point_suits_is_an_error() -> None:
    with pytest.raises(ValueError, match="no point is left for kill, fault 20"):
        draw(0, POINTS, [(Kind.KILL, is_progress)] * 21)


def test_without_a_plan_a_hook_does_nothing() -> None:
    assert faults._injector is None
    hook("progress", "train", 1)


def test_a_fault_fires_at_its_hit_and_never_again(log: FaultLog) -> None:
    fault = Fault(Kind.NUMERICAL, Point("progress", "train/3"), hit=2)
    follow(log, fault)
    for step in (2, 3, 4):
        hook("progress", "train", step)
    assert log.fired() == []
    with pytest.raises(NumericalError, match="injected at progress train/3"):
        hook("progress", "train", 3)
    for _ in range(3):
        hook("progress", "train", 3)
    assert [(item.fault, item.pid) for item in log.fired()] == [(fault, os.getpid())]
    assert [hit.point.step for hit in log.trace()] == ["train/2", "train/3", "train/4"] + ["train/3"] * 4


def test_a_hit_is_counted_over_processes_and_threads(log: FaultLog) -> None:
    point = Point("progress", "train/3")
    follow(log, *(Fault(Kind.TRANSIENT, point, hit) for hit in (2, 4)))
    program = "from recovery.faults import hook; hook('progress', 'train', 3)"
    environment = os.environ | {ENVIRONMENT: str(log.folder)}
    codes = [
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True).returncode
        for _ in range(3)
    ]
    assert codes == [0, 1, 0]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: log.count(point), range(16)))
    assert sorted(numbers) == list(range(4, 20))


@pytest.mark.parametrize(
    ("kind", "error_class"),
    [
        (Kind.TRANSIENT, ErrorClass.TRANSIENT),
        (Kind.LOST_OBJECT, ErrorClass.TRANSIENT),
        (Kind.RESOURCE, ErrorClass.RESOURCE),
        (Kind.DISK_FULL, ErrorClass.RESOURCE),
        (Kind.NUMERICAL, ErrorClass.NUMERICAL),
        (Kind.VALIDATION, ErrorClass.VALIDATION),
        (Kind.UNKNOWN, ErrorClass.UNKNOWN),
    ],
)
def test_exceptions_are_of_their_class_and_name_their_point(log: FaultLog, kind: Kind, error_class: ErrorClass) -> None:
    follow(log, Fault(kind, Point("progress", "train/1")))
    with pytest.raises(BaseException, match="injected at progress train/1") as caught:
        hook("progress", "train", 1)
    assert Classifier().classify(caught.value) is error_class


def test_the_unpicklable_one_is_not_read_back(log: FaultLog) -> None:
    follow(log, Fault(Kind.UNPICKLABLE, Point("progress", "train/1")))
    with pytest.raises(faults.UnpicklableError, match="injected") as caught:
        hook("progress", "train", 1)
    with pytest.raises(TypeError, match="positional"):
        pickle.loads(pickle.dumps(caught.value))  # noqa: S301


def test_a_full_disk_refuses_the_write_of_a_file_of_the_run_once(log: FaultLog) -> None:
    follow(log, Fault(Kind.DISK_FULL, Point("write", "01_cognate/result.json")))
    path = str(log.folder.parent / "run" / "01_cognate" / "result.json")
    storage.write_bytes(str(log.folder.parent / "run" / "journal" / "1.json"), b"free")
    with pytest.raises(OSError, match="No space left"):
        storage.write_json(path, {})
    assert not storage.exists(path)
    storage.write_json(path, {})
    assert storage.read_json(path) == {}
    assert [hit.point.step for hit in log.trace()] == ["01_cognate/result.json"] * 2


@pytest.mark.parametrize("kind", [Kind.KILL, Kind.TORN, Kind.CORRUPT])
def test_what_comes_from_outside_is_waited_for_at_the_point(log: FaultLog, kind: Kind) -> None:
    """The process writes a checkpoint and is killed from outside where the plan says; started again, it goes on."""
    hooked = Point("write", "01_x/a/part") if kind is Kind.TORN else Point("checkpoint", "a/1")
    fault = Fault(kind, hooked)
    run = log.folder.parent / "run"
    log.write_plan(str(run), [fault])
    program = (
        "from phases import storage; from recovery.faults import hook; "
        f"storage.write_bytes('{run}/01_x/a/part', b'whole'); hook('checkpoint', 'a', 1, folder='{run}/01_x/a')"
    )
    environment = os.environ | {ENVIRONMENT: str(log.folder)}

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment)

    process = start()
    while not log.fired():
        assert process.poll() is None
    assert log.fired()[0].pid == process.pid
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.kill()
    process.wait()
    left = {file.name: file.read_bytes() for file in (run / "01_x" / "a").iterdir()}
    expected = {
        Kind.KILL: {"part": b"whole"},
        Kind.TORN: {".tmp-part-torn": b"wh"},
        Kind.CORRUPT: {"part": b"wh\x90le"},
    }
    assert left == expected[kind]
    assert start().wait(30) == 0
    assert (run / "01_x" / "a" / "part").read_bytes() == b"whole"


def test_two_faults_at_one_hit_are_refused(log: FaultLog) -> None:
    twice = Fault(Kind.KILL, POINTS[0]), Fault(Kind.SLOW, POINTS[0])
    with pytest.raises(ValueError, match="two faults"):
        log.write_plan("run", twice)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"plan\.json"):
        faults.install(FaultLog(tmp_path))
