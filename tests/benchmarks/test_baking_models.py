"""The bound of several models over shared agents, and a small run of two at once that ends as each does alone."""

from pathlib import Path

import pytest

from actors.agent import Task
from benchmarks.baking_models import bake, bound, mixed_up
from benchmarks.baking_small import write_model
from phases import rundir
from phases.baking.evidence import AGENTS

TASKS = [Task("a", "one", "work"), Task("b", "two", "work", after=("a",)), Task("c", "one", "work", after=("b",))]


def test_the_bound_is_the_longest_path_or_the_busiest_agent_between_what_must_come_before_and_after() -> None:
    seconds = {f"{model}/{task.id}": 1.0 for model in "xy" for task in TASKS}
    assert bound(TASKS, ["x"], seconds) == (3.0, "the longest path")
    assert bound(TASKS, ["x", "y"], seconds) == (4.0, "the work of one")  # that of two: 1 + 2 + 1
    seconds |= {"x/b": 5.0, "y/b": 5.0}
    assert bound(TASKS, ["x", "y"], seconds) == (12.0, "the work of two")
    seconds["y/c"] = 20.0
    assert bound(TASKS, ["x", "y"], seconds) == (26.0, "the longest path")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_models_at_once_end_as_each_does_alone(tmp_path: Path) -> None:
    runs = {name: str(tmp_path / "run" / name) for name in ("model-0", "model-1")}
    for seed, uri in enumerate(runs.values()):
        write_model(f"{uri}/{rundir.START}", seed)
    outcome = bake(str(tmp_path / "run"), runs)
    assert outcome.results.keys() == runs.keys()
    models = [outcome.results[name].model for name in runs]
    assert models[0] is not None
    assert models[1] is not None
    assert models[0].sha256 != models[1].sha256
    tasks = [Task(name.partition("/")[2], "agent", "work") for name in outcome.seconds if name.startswith("model-0/")]
    for name, uri in runs.items():
        assert mixed_up(uri, str(tmp_path / "alone" / name), name, tasks) == []
        assert outcome.results[name].metrics["agents_completed"] == len(AGENTS)
    (tmp_path / "run" / "model-0").rename(tmp_path / "away")
    (tmp_path / "run" / "model-1").rename(tmp_path / "run" / "model-0")
    assert mixed_up(runs["model-0"], str(tmp_path / "again"), "model-0", tasks) != []
