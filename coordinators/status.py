"""How a run is, from its files alone: while another process runs it, after it has ended, and after it has died.

`run_status` collects it as JSON can hold it, `coordinators/live.py` shows it. What is old is said to be old: the health
report tells its time, and whether somebody works in the run is taken from the lease and not from the last event.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import yaml

from coordinators.config import PipelineConfig, parse_config
from coordinators.health import newest_report
from phases import rundir, storage
from phases.errors import ArtifactError
from recovery.checkpoints import Checkpoints
from recovery.health import agent_key, breaker_key
from recovery.journal import LOSS, Event, Journal
from recovery.lease import Lease
from recovery.taxonomy import Strategy

_RECOVERIES = 20  # the newest, listed; all are counted


def read_config(run: str) -> PipelineConfig:
    """Return a run's resolved configuration. Raises `ArtifactError` where `run` holds no run."""
    path = storage.join(run, "config.yaml")
    if not storage.exists(path):
        raise ArtifactError(f"{run}: no run in it (config.yaml is missing); start one with forge run --run-dir {run}")
    return parse_config(yaml.safe_load(storage.read_bytes(path)))


def run_status(run: str) -> dict[str, Any]:
    """Return how far a run is, how it fares, and what a person should know. Raises `ArtifactError` as `read_config`."""
    config, events = read_config(run), list(Journal(run).read())
    finished = rundir.finished_phases(run)
    holder = Lease(run).holder()
    problems = list[str]()
    health, queues, degraded, checkpoints = (
        _unless_damaged(part, run, problems) for part in (newest_report, _queues, _degraded, _checkpoints)
    )
    started = {e.data["phase"] for e in events if e.kind == "phase_started"}
    recoveries = [e for e in events if e.kind == "recovery"]
    return {
        "run": run,
        "preset": config.name,
        "state": _state(list(config.phases) == finished, events, holder),
        "live": holder is not None,
        "phases": {
            phase: "finished" if phase in finished else "begun" if phase in started else "to do"
            for phase in config.phases
        },
        "degraded": degraded,
        "tasks": _tasks(events, live=holder is not None),
        "agents": health.get("agents", {}),
        "recoveries": [_recovery(e) for e in recoveries[-_RECOVERIES:]],
        "recoveries_by_strategy": dict(Counter(str(e.data["strategy"]) for e in recoveries)),
        "breakers": {breaker_key(e.data): str(e.data["after"]) for e in events if e.kind == "breaker"},
        "queues": queues,
        "health": {key: value for key, value in health.items() if key not in ("agents", "breakers", "queues")},
        "alerts": [
            {"time": e.time, "text": next(e.data[key] for key in ("text", "error", "problem") if key in e.data)}
            for e in events
            if e.kind in ("alert", "alert_failed", "run_stopped", LOSS)
        ],
        "checkpoints": checkpoints,
        "problems": problems,
        "last_event": f"{events[-1].time} {events[-1].kind}" if events else "none",
        "time": time.time(),
    }


def _state(finished: bool, events: Sequence[Event], holder: Mapping[str, Any] | None) -> str:
    if finished:
        return "finished"
    if holder is not None:
        return f"running: process {holder['pid']} on {holder['host']}"
    ends = [e for e in events if e.kind in ("run_started", "run_resumed", "run_stopped")]
    if ends and ends[-1].kind == "run_stopped":
        return f"stopped: {'; '.join(ends[-1].data['error'].splitlines())}; forge resume goes on"
    return "interrupted: forge resume goes on"


def _tasks(events: Sequence[Event], *, live: bool) -> dict[str, str]:
    """Return what became of each task that was begun."""
    tasks = dict[str, str]()
    for event in events:
        if event.kind in ("run_started", "run_resumed", "pipeline_restarted"):
            tasks |= {task: "interrupted" for task, state in tasks.items() if state.startswith(("running", "waits"))}
        elif event.kind == "task_started":
            tasks[_task(event)] = "running"
        elif event.kind == "task_finished":
            tasks[_task(event)] = "done"
        elif event.kind == "task_failed":
            tasks[_task(event)] = f"failed: {event.data['error']}"
        elif event.kind == "recovery" and event.data["strategy"] != Strategy.ESCALATE:
            after = {Strategy.ISOLATE: "left out"}.get(event.data["strategy"], f"waits for {event.data['strategy']}")
            tasks[_task(event)] = f"{after}: {event.data['error']}"
    return tasks if live else {k: "interrupted" if v.startswith(("running", "waits")) else v for k, v in tasks.items()}


def _task(event: Event) -> str:
    return agent_key(event.data["phase"], event.data["task"])


def _recovery(event: Event) -> str:
    data = event.data
    return f"{data['task']}: {data['error_class']} -> {data['strategy']} ({data['error']})"


def _unless_damaged(part: Callable[[str], dict[str, Any]], run: str, problems: list[str]) -> dict[str, Any]:
    """Return a part of the status; where its files are damaged, nothing, and the damage among the problems."""
    try:
        return part(run)
    except ArtifactError as error:
        problems.append(str(error))
        return {}


def _degraded(run: str) -> dict[str, Any]:
    results = {phase: rundir.read_result(run, phase) for phase in rundir.finished_phases(run)}
    return {phase: result.degraded for phase, result in results.items() if result.degraded}


def _queues(run: str) -> dict[str, Any]:
    """Return the queues of the run's data flow with their dead letters, as the store has them."""
    from coordinators.dataflow import flow_uri, inspect

    return inspect(flow_uri(run)) if storage.exists(flow_uri(run)) else {}


def _checkpoints(run: str) -> dict[str, int]:
    """Return task (`phase/role`) -> step of its newest good checkpoint, for all phases."""
    steps = dict[str, int]()
    for phase in rundir.PHASES:
        folder = storage.join(run, rundir.phase_folder(phase), "checkpoints")
        for role in storage.names(folder):
            if (newest := Checkpoints(storage.join(folder, role)).newest()) is not None:
                steps[f"{phase}/{role}"] = newest.step
    return steps


def age(moment: str | float, now: float) -> str:
    """Return how long ago a moment was, given in seconds since the epoch or as in the journal, e.g. `3 min`."""
    then = moment if isinstance(moment, float) else datetime.fromisoformat(str(moment)).timestamp()
    seconds = max(now - then, 0.0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
