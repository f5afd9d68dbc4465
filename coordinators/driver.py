"""What the command line calls: start a run, resume one, tell how one is.

The driver holds the lease on the run directory, starts Ray and the pipeline's coordinator, and passes its events to the
live view and to W&B. It does no work of its own: if it is killed, `forge resume` goes on from what is stored.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import yaml
from ray.exceptions import RayActorError, RayError, RayTaskError

from coordinators.config import PipelineConfig, dump_config, parse_config
from coordinators.live import LiveView
from coordinators.pipeline import finished_result, spawn_pipeline
from coordinators.tracking import PipelineLogger
from phases import rundir, storage
from phases.contract import PhaseResult
from phases.errors import ArtifactError, ConfigError, ForgeError
from recovery.checkpoints import Checkpoints
from recovery.journal import Journal
from recovery.lease import Lease

_POLL_SECONDS = 0.5


def start_run(config: PipelineConfig, run: str, *, plain: bool = False) -> PhaseResult:
    """Run a pipeline in a new run directory and return the last phase's result.

    Raises `ConfigError` where the directory already holds a run, `BusyError` where another process works in it, and
    `ForgeError` with the cause and the way on where a task failed.
    """
    run = _absolute(run)
    path = storage.join(run, "config.yaml")
    with Lease(run):
        if storage.exists(path):
            raise ConfigError.of("--run-dir", run, "there is a run in it", f"forge resume {run}, or choose another")
        storage.write_bytes(path, dump_config(config).encode())
        Journal(run).append("run_started", preset=config.name)
        return _drive(run, config, plain)


def resume_run(run: str, *, address: str | None = None, plain: bool = False) -> PhaseResult:
    """Continue a run. Raises `ArtifactError` where there is none, else as `start_run`."""
    run = _absolute(run)
    config = read_config(run)
    if address is not None:
        config = config.model_copy(update={"ray": config.ray.model_copy(update={"address": address})})
    with Lease(run):
        results = [finished_result(run, phase) for phase in config.phases]
        if results[-1] is not None:
            return results[-1]
        Journal(run).append("run_resumed")
        return _drive(run, config, plain)


def read_config(run: str) -> PipelineConfig:
    """Return a run's resolved configuration. Raises `ArtifactError` where `run` holds no run."""
    path = storage.join(run, "config.yaml")
    if not storage.exists(path):
        raise ArtifactError(f"{run}: no run in it (config.yaml is missing); start one with forge run --run-dir {run}")
    return parse_config(yaml.safe_load(storage.read_bytes(path)))


def run_status(run: str) -> dict[str, Any]:
    """Return how far a run is, from its files alone."""
    config = read_config(run)
    events = list(Journal(run).read())
    started = {e.data["task"]: "running or interrupted" for e in events if e.kind == "task_started"}
    ended = {e.data["task"]: "failed: " + e.data["error"] for e in events if e.kind == "task_failed"}
    done = {e.data["task"]: "done" for e in events if e.kind == "task_finished"}
    folder = storage.join(run, rundir.phase_folder("cognate"), "checkpoints")
    found = {role: Checkpoints(storage.join(folder, role)).newest() for role in storage.names(folder)}
    finished = rundir.finished_phases(run)
    return {
        "run": run,
        "preset": config.name,
        "state": "finished" if list(config.phases) == finished else "unfinished: forge resume goes on",
        "phases": {phase: "finished" if phase in finished else "to do" for phase in config.phases},
        "tasks": started | ended | done,
        "recoveries": [
            f"{e.data['task']}: {e.data['error_class']} -> {e.data['strategy']} ({e.data['error']})"
            for e in events
            if e.kind == "recovery"
        ],
        "checkpoints": {role: checkpoint.step for role, checkpoint in found.items() if checkpoint},
        "last_event": f"{events[-1].time} {events[-1].kind}" if events else "none",
    }


def _absolute(run: str) -> str:
    return run if "://" in run else os.path.abspath(run)


def _drive(run: str, config: PipelineConfig, plain: bool) -> PhaseResult:
    """Run the coordinator to its end, showing what happens. One that dies is started again and goes on."""
    with _ray(config), LiveView(plain=plain) as view, PipelineLogger(run, config) as logger:
        for left in reversed(range(config.supervision.pipeline_restarts + 1)):
            pipeline = spawn_pipeline(run, config)
            try:
                result = _follow(pipeline, [view.on_event, logger.on_event])
                break
            except RayError as error:
                if not (left and isinstance(error, RayActorError)):
                    raise _stopped(run, error) from error
                ray.kill(pipeline)  # else its name stays taken for as long as a traceback holds the handle
                Journal(run).append("pipeline_restarted", error=str(error).partition("\n")[0], left=left - 1)
    Journal(run).append("run_finished")
    return result


def _follow(pipeline: Any, listeners: list[Callable[[dict[str, Any]], None]]) -> PhaseResult:
    """Start a pipeline, pass its events on until it ends, and return its result. Raises what Ray raises."""
    pending = pipeline.run.remote()
    done: list[Any] = []
    while not done:
        done, _ = ray.wait([pending], timeout=_POLL_SECONDS)
        for event in _events(pipeline):
            for listener in listeners:
                listener(event)
    result: PhaseResult = ray.get(pending)
    return result


def _events(pipeline: Any) -> list[dict[str, Any]]:
    try:
        events: list[dict[str, Any]] = ray.get(pipeline.events.remote(), timeout=30)
    except (RayError, TimeoutError):
        return []  # the coordinator is gone or busy; `pending` tells which
    return events


def _stopped(run: str, error: RayError) -> ForgeError:
    cause = error.cause if isinstance(error, RayTaskError) else error
    Journal(run).append("run_stopped", error=str(cause))
    kind = type(cause) if isinstance(cause, ForgeError) else ForgeError
    return kind(f"{cause}\nnothing finished is lost: `forge resume {run}` goes on from the newest checkpoint")


@contextmanager
def _ray(config: PipelineConfig) -> Iterator[None]:
    """Connect to the configured cluster, or start Ray on this machine and stop it afterwards."""
    if ray.is_initialized():
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False)
    else:
        ray.init(
            address="local",
            object_store_memory=config.ray.object_store_mb << 20,
            include_dashboard=config.ray.dashboard,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()
