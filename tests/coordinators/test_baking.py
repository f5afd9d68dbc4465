"""Phase 6 on real actors: nine agents do its steps, a killed one is replaced, and what it computes stays the same."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.agent import NAMESPACE
from actors.baking.baking_coordinator import BakingCoordinator as BakingCoordinatorAgent
from benchmarks.baking_small import SMALL, write_model
from coordinators.baking import BakingCoordinator
from coordinators.config import PipelineConfig
from coordinators.phase import RunContext
from coordinators.schedule import check_plan
from coordinators.tracking import PipelineLogger
from phases import rundir, storage
from phases.baking.evidence import AGENTS, FOLDER, STEPS
from phases.baking.result import RELIABILITY
from phases.baking.validation.reports import audit_report
from phases.contract import PhaseResult
from recovery.journal import Journal

Recorded = Callable[[Path, bytes], bytes]
BY_TIME = SMALL.optimisation.model_copy(update={"target": "latency"})
CONFIG = PipelineConfig(name="test", baking=SMALL.model_copy(update={"optimisation": BY_TIME}))


def _run(folder: Path) -> str:
    """Make a run whose first phase has handed on a model."""
    run = str(folder)
    uri = f"{rundir.phase_folder('cognate')}/model"
    ref = write_model(storage.join(run, uri), 0)
    now = datetime.now(UTC)
    handed = PhaseResult(
        success=True, phase="cognate", model=ref.model_copy(update={"uri": uri}), start_time=now, end_time=now,
        duration_seconds=0,
    )  # fmt: skip
    rundir.write_result(run, handed)
    return run


def _coordinator(run: str, on_event: Any = None) -> BakingCoordinator:
    journal = Journal(run)

    def emit(kind: str, **data: Any) -> None:
        if kind != "progress":
            journal.append(kind, **data)
        if on_event is not None:
            on_event(kind, data)

    return BakingCoordinator(RunContext(run=run, emit=emit), CONFIG)


def test_the_plan_is_a_graph_of_nine_agents(tmp_path: Path) -> None:
    tasks, roles = _coordinator(_run(tmp_path)).plan()
    check_plan(tasks, {name: role.agent for name, role in roles.items()})
    assert set(roles) == set(AGENTS)
    assert {task.agent for task in tasks} == set(AGENTS)


def test_it_runs_only_where_it_is_named() -> None:
    assert "baking" not in CONFIG.phases
    assert "baking" in PipelineConfig(name="test", phases=("cognate", "baking")).phases


def _assert_documented(run: Path, result: PhaseResult, summary: dict[str, Any], recorded: Recorded) -> None:
    """The artifacts and the W&B keys that the documents name are there, and the same reliability is told everywhere."""
    files = {"baking_summary.json", "agent_coordination_log.json", "error_recovery_log.json"}
    assert result.artifacts.keys() >= {"baked_model", *files}
    assert all((run / path).exists() for path in result.artifacts.values())
    rundir.write_result(str(run), result)
    with PipelineLogger(str(run), CONFIG) as logger:
        logger.on_event({"kind": "phase_started", "phase": "baking"})
        logger.on_event({"kind": "phase_finished", "phase": "baking"})
        assert logger.mode == "offline"  # nothing has failed
    (stated,) = summary["results"]
    assert stated["value"] == summary["metrics"][RELIABILITY] == result.metrics[RELIABILITY] < 99.9
    assert (stated["n"], stated["failures"]) == (12, 0)
    assert not audit_report(run / FOLDER / "baking_summary.json").findings
    scores = ("tool_accuracy", "persona_coherence", "helpfulness_score", "creativity_score", "precision_score")
    keys = [*scores, "processing_time_min", "reliability_percent", *(f"agent_completion/{name}" for name in AGENTS)]
    data = recorded(run, b"baking_summary.json")
    for key in (*(f"baking/{key}" for key in keys), "baked_model", *files):
        assert key.encode() in data, key


def test_the_log_waits_for_what_the_journal_has_not_got_yet(tmp_path: Path) -> None:
    """What is noted is put up to 100 ms later; what a task's start follows is there when that is."""
    run, journal, agent = str(tmp_path), Journal(str(tmp_path)), BakingCoordinatorAgent(str(tmp_path), "baking", "x")
    for task in ("audit", "one/audit", "finish"):
        journal.note("task_finished" if "audit" in task else "task_started", phase="baking", task=task, agent="x")
    assert [event.data["task"] for event in agent._told("finish")] == ["audit", "finish"]
    assert Journal(run).read()


@pytest.mark.parametrize("end", ["recovery", "pipeline_restarted", "run_resumed"])
def test_the_log_waits_for_the_start_of_its_own_attempt(end: str, tmp_path: Path) -> None:
    journal, agent = Journal(str(tmp_path)), BakingCoordinatorAgent(str(tmp_path), "baking", "x")
    start = {"phase": "baking", "task": "finish", "agent": "x"}
    journal.append("task_started", **start)
    journal.append(end, **(start if end == "recovery" else {}))
    journal.note("task_started", **start)
    assert [event.kind for event in agent._told("finish")].count("task_started") == 2


def test_the_log_is_not_written_without_the_last_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.baking.baking_coordinator._NOTED_SECONDS", 0.2)
    Journal(str(tmp_path)).append("task_started", phase="baking", task="audit", agent="x")
    with pytest.raises(TimeoutError, match="has not got its start"):
        BakingCoordinatorAgent(str(tmp_path), "baking", "x")._told("finish")


def test_every_task_says_what_to_do_where_memory_does_not_suffice(tmp_path: Path) -> None:
    for task in _coordinator(_run(tmp_path)).plan()[0]:
        assert task.fallback is not None
        assert task.fallback["order"] == replace(task.arguments["order"], frugal=True)
        assert task.fallback.keys() == task.arguments.keys()


@pytest.mark.slow
def test_nine_agents_do_the_seven_steps_though_one_is_killed(
    tmp_path: Path, ray_cluster: None, recorded: Recorded
) -> None:
    undisturbed, disturbed = _run(tmp_path / "a"), _run(tmp_path / "b")
    result = asyncio.run(_coordinator(undisturbed).run())
    assert result.metrics["agents_completed"] == 9
    summary = json.loads((tmp_path / "a" / FOLDER / "baking_summary.json").read_text())
    assert all(summary["steps"][step] for step in STEPS[:-1])
    log = json.loads((tmp_path / "a" / FOLDER / "agent_coordination_log.json").read_text())
    assert {entry["agent"] for entry in log} == set(AGENTS)
    assert sum(entry["kind"] == "task_finished" for entry in log) == 12  # all but the task that writes it
    _assert_documented(tmp_path / "a", result, summary, recorded)

    killed = list[str]()

    def kill_once(kind: str, data: dict[str, Any]) -> None:
        if kind == "task_started" and data["task"] == "bake" and not killed:
            killed.append(data["agent"])
            ray.kill(ray.get_actor(f"b/baking/{data['agent']}", NAMESPACE))

    again = asyncio.run(_coordinator(disturbed, kill_once).run())
    assert again.model is not None
    assert result.model is not None
    assert again.model.sha256 == result.model.sha256
    recovered = json.loads((tmp_path / "b" / FOLDER / "error_recovery_log.json").read_text())
    assert [entry["task"] for entry in recovered] == ["bake"]
    assert killed == ["ModelOptimizer"]
