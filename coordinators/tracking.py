"""Weights & Biases: one W&B run per phase, grouped by pipeline run. Offline unless the user asks.

`PipelineLogger` follows the events of a run and opens a `PhaseLogger` for each phase. Tracking never stops a run: what
W&B raises is logged once, and the run goes on without it. Files are in the run directory, or in a temporary folder
where that is remote.
"""

import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from coordinators.config import PipelineConfig
from coordinators.health import newest_report
from phases import rundir, storage
from phases.cognate.config import CognateConfig
from phases.contract import ModelRef, PhaseResult
from phases.errors import ForgeError
from recovery.circuit_breaker import BreakerState

_log = logging.getLogger(__name__)


class PhaseLogger:
    """The W&B run of one phase; a context manager. `mode` is `online`, `offline` or `disabled`."""

    def __init__(self, run: str, phase: str, config: dict[str, Any], *, project: str, mode: str) -> None:
        self.run_uri, self.phase, self.config = run, phase, config
        self.project, self.mode = project, mode
        self._wandb_run: Any = None

    def __enter__(self) -> Self:
        if self.mode != "disabled":
            self._wandb_run = self._open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._wandb_run is not None:
            self._wandb_run.finish()

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log one point of several curves."""
        if self._wandb_run is not None and metrics:
            self._wandb_run.log(metrics)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        if self._wandb_run is not None:
            import wandb

            self._wandb_run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def log_summary(self, values: dict[str, Any]) -> None:
        """Set values of the run's summary."""
        if self._wandb_run is not None:
            self._wandb_run.summary.update(values)

    def log_artifact(self, name: str, path: str, *, kind: str, best: bool = False, metadata: dict[str, Any]) -> None:
        """Log a file or folder of the run with the alias `latest`, and `best` for the chosen one.

        A remote run directory is logged by reference, so nothing is copied.
        """
        if self._wandb_run is None:
            return
        import wandb

        artifact = wandb.Artifact(name, type=kind, metadata=metadata)
        uri = storage.join(self.run_uri, path)
        local = uri.removeprefix("file://")
        if not storage.is_local(uri):
            artifact.add_reference(uri, checksum=False)
        elif Path(local).is_dir():
            artifact.add_dir(local)
        else:
            artifact.add_file(local)
        self._wandb_run.log_artifact(artifact, aliases=["latest", "best"] if best else ["latest"])

    def use_artifact(self, name: str, ref: ModelRef) -> None:
        """Record that the phase takes `ref`; W&B draws the lineage online, offline the configuration holds it."""
        if self._wandb_run is None:
            return
        self._wandb_run.config.update({f"uses/{name}": ref.sha256})
        if self.mode == "online":
            self._wandb_run.use_artifact(f"{name}:latest")

    def _open(self) -> Any:
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_stats=True,
            silent=True,
        )
        folder = self.run_uri.removeprefix("file://")
        if not storage.is_local(self.run_uri):
            folder = tempfile.mkdtemp(prefix="forge-wandb-")
        return wandb.init(
            project=self.project,
            group=storage.folder_name(self.run_uri),
            name=f"{storage.folder_name(self.run_uri)}-{self.phase}",
            job_type=self.phase,
            config=self.config,
            dir=folder,
            mode="online" if self.mode == "online" else "offline",
            settings=settings,
        )


class PipelineLogger:
    """Follows the events of a run; a context manager. WANDB_MODE has precedence over the configuration."""

    def __init__(self, run: str, config: PipelineConfig) -> None:
        self.run_uri, self.config = run, config
        self.mode = os.environ.get("WANDB_MODE", config.tracking.wandb_mode)
        self._phase: PhaseLogger | None = None
        self._next_look = 0.0  # at the run's health, in seconds of the monotonic clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def on_event(self, event: dict[str, Any]) -> None:
        """Take an event of the run."""
        if self.mode == "disabled":
            return
        try:
            self._take(event)
        except Exception as error:  # W&B raises what it likes, and a run must not end for it
            self._give_up(error)

    def _take(self, event: dict[str, Any]) -> None:
        if event["kind"] == "phase_started":
            config = self.config.model_dump(mode="json")
            self._phase = PhaseLogger(
                self.run_uri, event["phase"], config, project=self.config.tracking.project, mode=self.mode
            ).__enter__()
        elif event["kind"] == "progress" and self._phase is not None:
            self._phase.log_metrics(_CURVES[event["phase"]](event) | self._health())
        elif event["kind"] == "phase_finished" and self._phase is not None:
            _log_result(self._phase, rundir.read_result(self.run_uri, event["phase"]))
            self._close()

    def _health(self) -> dict[str, float]:
        """Return the keys of health as often as there can be a new report, nothing in between."""
        if (now := time.monotonic()) < self._next_look:
            return {}
        self._next_look = now + self.config.alerts.health.interval_seconds
        return _health_metrics(self.run_uri)

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, ForgeError):
            raise error
        _log.warning("W&B failed, the run goes on without it: %s", error)
        self.mode = "disabled"
        with suppress(Exception):
            self._close()

    def _close(self) -> None:
        if self._phase is not None:
            phase, self._phase = self._phase, None
            phase.__exit__()


def _log_result(logger: PhaseLogger, result: PhaseResult) -> None:
    logger.log_summary({claim.key: claim.value for claim in result.claims} | result.metrics)
    rows = [(c.key, c.value, c.unit, c.baseline.value if c.baseline else None, c.target) for c in result.claims]
    logger.log_table("claims", ["claim", "value", "unit", "baseline", "target"], rows)
    _ARTIFACTS[result.phase](logger, result)


def _cognate_artifacts(logger: PhaseLogger, result: PhaseResult) -> None:
    config = CognateConfig.model_validate({k: v for k, v in result.config.items() if k != "seed"})
    for number, variant in enumerate(config.variants, start=1):
        ref = result.models[variant.name]
        values = {"model/total_params": ref.parameters, "model/trainable_params": ref.parameters}
        logger.log_metrics(values)
        logger.log_summary({f"model/variant/{number}": variant.name})
        logger.log_artifact(
            f"cognate_foundation_{number}",
            ref.uri,
            kind="model",
            best=result.model is not None and result.model.sha256 == ref.sha256,
            metadata={"model/variant": variant.name, "sha256": ref.sha256} | values,
        )
    summary = "cognate_models_summary.json"
    logger.log_artifact(summary, result.artifacts[summary], kind="summary", metadata={})


def _evomerge_artifacts(logger: PhaseLogger, result: PhaseResult) -> None:
    for name, path in result.artifacts.items():
        best = name == "evomerge_best_model"
        logger.log_artifact(name, path, kind="model" if best else "search", best=best, metadata={})


def _bitnet_artifacts(logger: PhaseLogger, result: PhaseResult) -> None:
    if result.model is not None:
        metadata = {"sha256": result.model.sha256}
        logger.log_artifact("bitnet_model", result.model.uri, kind="model", best=True, metadata=metadata)
    for name, path in result.artifacts.items():
        logger.log_artifact(f"bitnet_{name}", path, kind="export", metadata={})


def _quietstar_artifacts(logger: PhaseLogger, result: PhaseResult) -> None:
    rows = storage.read_json(storage.join(logger.run_uri, result.artifacts["thoughts"]))
    columns = ["text", "thought", "next", "probability_without", "probability_with", "weight"]
    logger.log_table("quietstar/thoughts", columns, [[row[column] for column in columns] for row in rows])
    if result.model is not None:
        metadata = {"sha256": result.model.sha256}
        logger.log_artifact("quietstar_model", result.model.uri, kind="model", best=True, metadata=metadata)


def _baking_artifacts(logger: PhaseLogger, result: PhaseResult) -> None:
    for name, path in result.artifacts.items():
        logger.log_artifact(name, path, kind="model" if name == "baked_model" else "report", metadata={})


def _health_metrics(run: str) -> dict[str, float]:
    """Return the documented keys from the newest report on the run's health, nothing before there is one."""
    if not (report := newest_report(run)):
        return {}
    nodes, rates = report["nodes"].values(), report["rates"]
    return {
        "health/cpu_usage": sum(node["cpu_percent"] for node in nodes) / max(len(nodes), 1),
        "health/memory_usage_mb": sum(node["memory"]["used"] for node in nodes) / 1e6,
        "health/error_rate": rates["errors"] / max(rates["attempts"], 1),
        "health/circuit_breaker_status": sum(state != BreakerState.CLOSED for state in report["breakers"].values()),
    }


def _training_metrics(event: dict[str, Any]) -> dict[str, float]:
    """Return the documented keys, each curve under the name of its model."""
    metrics, model = event["metrics"], event["agent"]
    if "loss" not in metrics:
        return {}
    entropy = metrics.get("cross_entropy", metrics["loss"])
    return {
        "training/loss": metrics["loss"],
        "training/perplexity": math.exp(min(entropy, 50.0)),
        f"training/{model}/loss": metrics["loss"],
        f"training/{model}/step": event["step"],
    }


def _search_metrics(event: dict[str, Any]) -> dict[str, float]:
    """Return the documented keys of a generation."""
    metrics = event["metrics"]
    names = {"avg_fitness": "average_fitness", "convergence_patience": "stale"}
    keys = ("generation", "best_fitness", "avg_fitness", "diversity", "perplexity", "accuracy", "convergence_patience")
    found = {key: metrics.get(names.get(key, key)) for key in keys}
    return {f"evomerge/{key}": value for key, value in found.items() if value is not None}


def _quantisation_metrics(event: dict[str, Any]) -> dict[str, float]:
    """Return the curves of a candidate or a control under its name."""
    model = event["agent"].replace(" ", "_")
    return {f"bitnet/{model}/{key}": value for key, value in event["metrics"].items()}


def _thought_metrics(event: dict[str, Any]) -> dict[str, float]:
    """Return the curves of the thinking model, and the control's under its name."""
    prefix = "quietstar/control" if event["agent"] == "control" else "quietstar"
    return {f"{prefix}/{key}": value for key, value in event["metrics"].items()}


def _baking_metrics(event: dict[str, Any]) -> dict[str, float]:
    """Return the curves of a task's training under its name."""
    return {f"baking/{event['task']}/{key}": value for key, value in event["metrics"].items()}


_CURVES = {
    "cognate": _training_metrics,
    "evomerge": _search_metrics,
    "quietstar": _thought_metrics,
    "bitnet": _quantisation_metrics,
    "baking": _baking_metrics,
}
_ARTIFACTS = {
    "cognate": _cognate_artifacts,
    "evomerge": _evomerge_artifacts,
    "quietstar": _quietstar_artifacts,
    "bitnet": _bitnet_artifacts,
    "baking": _baking_artifacts,
}
