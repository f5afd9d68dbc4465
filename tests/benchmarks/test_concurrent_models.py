"""The bound, the plan of faults, and a small run with all kinds of faults that ends as one without."""

from pathlib import Path

import pytest

from benchmarks.concurrent_models import (
    AGENTS,
    FAULTS,
    Fault,
    Hasher,
    Outcome,
    bound,
    carry_out,
    check_fired,
    draw_faults,
    plan,
)
from coordinators.schedule import check_plan
from phases.errors import ForgeError

SMALL = {model: plan(model, 30, seed=0) for model in ("one", "two")}


def test_the_bound_is_the_longest_path_or_the_work_of_all_agents() -> None:
    seconds = {f"{model}/{task.id}": 1.0 for model, tasks in SMALL.items() for task in tasks}
    assert bound(SMALL, seconds) == pytest.approx(2 * (4 * len(AGENTS) + 1) / len(AGENTS))
    seconds["one/2-south"] = 50.0
    assert bound(SMALL, seconds) == pytest.approx(4 + 50.0)


def test_faults_are_seeded_and_of_each_kind() -> None:
    drawn = draw_faults(SMALL, 8, seed=3)
    assert drawn == draw_faults(SMALL, 8, seed=3)
    assert drawn != draw_faults(SMALL, 8, seed=4)
    assert [fault.kind for fault in drawn] == list(FAULTS) * 2
    assert len({fault.task for fault in drawn}) == 8


def test_the_plan_can_run() -> None:
    for tasks in SMALL.values():
        check_plan(tasks, dict.fromkeys(AGENTS, Hasher))


def test_a_fault_that_did_not_fire_is_an_error() -> None:
    outcome = Outcome(1.0, {}, 0, {}, recoveries=[("one/0-north", "crash")])
    check_fired([Fault("one/0-north", "kill", 0.5)], outcome)
    with pytest.raises(ForgeError, match="without a recovery"):
        check_fired([Fault("one/0-north", "nan", 0.5)], outcome)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_with_faults_every_model_ends_with_the_same_bytes(tmp_path: Path) -> None:
    faults = draw_faults(SMALL, 4, seed=1)
    clean = carry_out(str(tmp_path / "clean"), SMALL)
    faulty = carry_out(str(tmp_path / "faulty"), SMALL, faults)
    check_fired(faults, faulty)
    assert clean.recoveries == []
    assert faulty.results == clean.results
    assert clean.results["one"] != clean.results["two"]
    assert (clean.foreign, faulty.foreign) == (0, 0)
    assert faulty.seconds.keys() == clean.seconds.keys()


def test_a_report_of_another_model_is_noticed(tmp_path: Path) -> None:
    agent = Hasher(str(tmp_path), "phase", "north")
    ours, theirs = (agent.work("t", model, 1, 1 << 20) for model in ("one", "two"))
    agent.work("u", "one", 1, 1 << 20, part0=ours, part1=theirs)
    assert '"foreign": 1' in (tmp_path / "tasks.jsonl").read_text().splitlines()[-1]


def test_smaller_pieces_give_the_same_bytes(tmp_path: Path) -> None:
    agent = Hasher(str(tmp_path), "phase", "north")
    assert agent.work("t", "one", 3, 1 << 20).tobytes() == agent.work("t", "one", 3, 1 << 18).tobytes()
    assert agent.work("t", "one", 3, 1 << 20).tobytes() != agent.work("t2", "one", 3, 1 << 20).tobytes()
