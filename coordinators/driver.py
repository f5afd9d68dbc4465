"""What the command line calls: start a run, or resume one.

The driver holds the lease on the run directory, starts Ray and the pipeline's coordinator, and passes its events to the
live view and to W&B. It does no work of its own: if it is killed, `forge resume` goes on from what is stored.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from coordinators.alerts import Alerts, webhook_url
from coordinators.cluster import check_address, connected
from coordinators.config import PipelineConfig, dump_config
from coordinators.live import LiveView
from coordinators.phase import cause_of
from coordinators.pipeline import finished_result, spawn_pipeline
from coordinators.status import read_config
from coordinators.tracking import PipelineLogger
from phases import storage
from phases.contract import PhaseResult
from phases.errors import ConfigError, ForgeError
from phases.seeds import child_seed
from recovery.commits import FencedError
from recovery.journal import Journal
from recovery.lease import Lease
from recovery.strategies import delay
from recovery.taxonomy import Strategy

Listener = Callable[[dict[str, Any]], None]
_POLL_SECONDS = 0.5
_SILENCE_SECONDS = 30.0  # of the pipeline's actor, until it is given up


def start_run(config: PipelineConfig, run: str, *, plain: bool = False) -> PhaseResult:
    """Run a pipeline in a new run directory and return the last phase's result.

    Raises `ConfigError` where the directory holds a run or the cluster to join cannot be used, `BusyError` where
    another process works in it, and `ForgeError` with the cause and the way on where a task failed.
    """
    run = _absolute(run)
    _check(config)
    path = storage.join(run, "config.yaml")
    with Lease(run) as lease:
        if storage.exists(path):
            raise ConfigError.of("--run-dir", run, "there is a run in it", f"forge resume {run}, or choose another")
        storage.write_bytes(path, dump_config(config).encode())
        Journal(run, lease.epoch).append("run_started", preset=config.name)
        return _drive(run, config, plain, lease)


def resume_run(run: str, *, address: str | None = None, plain: bool = False) -> PhaseResult:
    """Continue a run. Raises `ArtifactError` where there is none, else as `start_run`."""
    run = _absolute(run)
    config = read_config(run)
    if address is not None:
        config = config.model_copy(update={"ray": config.ray.model_copy(update={"address": address})})
    with Lease(run) as lease:
        Journal(run, lease.epoch).recover()
        results = [finished_result(run, phase) for phase in config.phases]
        if results[-1] is not None:
            return results[-1]
        _check(config)
        Journal(run, lease.epoch).append("run_resumed")
        return _drive(run, config, plain, lease)


def _absolute(run: str) -> str:
    return run if "://" in run else os.path.abspath(run)


def _check(config: PipelineConfig) -> None:
    """Raise `ConfigError` where the machine or the cluster is not as the configuration needs it."""
    webhook_url(config.alerts)
    check_address(config.ray.address)


def _drive(run: str, config: PipelineConfig, plain: bool, lease: Lease) -> PhaseResult:
    """Run the coordinator to its end, showing what happens."""
    with (
        connected(config.ray) as address,
        Alerts(run, config.alerts) as alerts,
        LiveView(plain=plain) as view,
        PipelineLogger(run, config) as logger,
    ):
        if address is not None:
            Journal(run, lease.epoch).append("cluster_joined", address=address)
            view.on_event({"kind": "cluster_joined", "address": address})
        listeners = [view.on_event, logger.on_event, alerts.on_event]
        try:
            result = _kept_alive(run, config, lease, listeners)
        except ForgeError as stopped:
            if not isinstance(stopped, FencedError):
                alerts.send(f"the run has stopped: {stopped}", level="error")
            raise
    Journal(run, lease.epoch).append("run_finished")
    return result


def _kept_alive(run: str, config: PipelineConfig, lease: Lease, listeners: Sequence[Listener]) -> PhaseResult:
    """Run the coordinator to its end. One that dies is started again, each time after a longer while, and goes on.

    Each has an epoch of its own, so that one that was taken for dead writes nothing any more. One that cannot be made
    would fail again, and stops the run as what a task has raised does.
    """
    attempts = config.supervision.pipeline_restarts + 1
    for attempt in range(1, attempts + 1):
        pipeline = spawn_pipeline(run, config, lease.epoch)
        try:
            return _follow(pipeline, lease, listeners)
        except RayError as error:
            died = isinstance(error, RayActorError) and not error.actor_init_failed
            if not died or attempt == attempts:
                raise _stopped(run, error) from error
            ray.kill(pipeline)  # else its name stays taken for as long as a traceback holds the handle
            reason = str(error).partition("\n")[0]
            Journal(run, lease.advance()).append("pipeline_restarted", error=reason, left=attempts - attempt - 1)
        seed = child_seed(config.seed, "recovery", "pipeline", attempt)
        time.sleep(delay(config.recovery.delays, Strategy.RESTART, attempt, seed))
    raise AssertionError("the last attempt returns or raises")


def _follow(pipeline: Any, lease: Lease, listeners: Sequence[Listener]) -> PhaseResult:
    """Start a pipeline, pass its events on until it ends, and return its result.

    Raises what Ray raises, and `FencedError` where another process has taken over the run.
    """
    pending = pipeline.run.remote()
    done: list[Any] = []
    answered = False  # until then, it may be starting
    while not done:
        done, _ = ray.wait([pending], timeout=_POLL_SECONDS)
        lease.check()
        events = _events(pipeline)
        if events is None and answered:
            ray.kill(pipeline)  # it is frozen, which Ray never notices: `pending` fails, and the next one takes over
        answered = answered or events is not None
        for event in events or ():
            for listener in listeners:
                listener(event)
    result: PhaseResult = ray.get(pending)
    return result


def _events(pipeline: Any) -> list[dict[str, Any]] | None:
    """Return what happened since the last call, None where there is no answer in time."""
    answer, silence = pipeline.events.remote(), 0.0
    while not ray.wait([answer], timeout=_POLL_SECONDS)[0]:
        silence += _POLL_SECONDS  # and not what the clock says: this process may itself have been stopped for a while
        if silence >= _SILENCE_SECONDS:
            return None
    try:
        events: list[dict[str, Any]] = ray.get(answer)
    except RayError:
        return []  # the coordinator is gone; `pending` tells how
    return events


def _stopped(run: str, error: RayError) -> ForgeError:
    cause = cause_of(error)
    if isinstance(cause, FencedError):
        return FencedError(str(cause))  # the run is another's, and so is its journal
    Journal(run).append("run_stopped", error=str(cause))
    kind = type(cause) if isinstance(cause, ForgeError) else ForgeError
    return kind(f"{cause}\nnothing finished is lost: `forge resume {run}` goes on from the newest checkpoint")
