"""W&B offline: the documented keys are in the run's files, nothing is sent, and its failures stop nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from coordinators.config import load_config
from coordinators.health import NEWEST
from coordinators.tracking import PhaseLogger, PipelineLogger
from phases import storage
from recovery.health import Health, HealthSettings

Recorded = Callable[[Path, bytes], bytes]
PROGRESS = {
    "kind": "progress",
    "phase": "cognate",
    "task": "train reasoning",
    "agent": "reasoning",
    "step": 3,
    "steps": 9,
    "metrics": {"loss": 2.0, "cross_entropy": 1.0},
}


def test_events_become_the_documented_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Recorded) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with PipelineLogger(str(tmp_path), load_config("smoke")) as logger:
        logger.on_event({"kind": "phase_started", "phase": "cognate"})
        logger.on_event(PROGRESS)
    data = recorded(tmp_path, b"training/loss")
    for key in (b"training/loss", b"training/perplexity", b"training/reasoning/step"):
        assert key in data
    assert b"2.71828182845" in data


def test_the_newest_report_on_health_goes_with_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Recorded
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    health = Health(HealthSettings(), 0)
    health.on_nodes({"here": {"cpu_percent": 50.0, "memory": {"used": 3e6, "total": 8e6}, "disks": {}, "gpus": []}}, 1)
    storage.write_json(str(tmp_path / NEWEST), health.report(2))
    with PipelineLogger(str(tmp_path), load_config("smoke")) as logger:
        logger.on_event({"kind": "phase_started", "phase": "cognate"})
        logger.on_event(PROGRESS)
    data = recorded(tmp_path, b"health/cpu_usage")
    for key in ("cpu_usage", "memory_usage_mb", "error_rate", "circuit_breaker_status"):
        assert f"health/{key}".encode() in data


def test_generations_become_the_documented_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Recorded
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    metrics = {"generation": 1, "best_fitness": 1.05, "average_fitness": 0.9, "diversity": 0.4, "stale": 2}
    metrics |= {"perplexity": 50.0, "accuracy": 0.25}
    with PipelineLogger(str(tmp_path), load_config("smoke")) as logger:
        logger.on_event({"kind": "phase_started", "phase": "evomerge"})
        logger.on_event(PROGRESS | {"phase": "evomerge", "task": "evolve", "metrics": metrics})
    data = recorded(tmp_path, b"evomerge/convergence_patience")
    for key in ("generation", "best_fitness", "avg_fitness", "diversity", "perplexity", "accuracy"):
        assert f"evomerge/{key}".encode() in data


def test_disabled_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with PipelineLogger(str(tmp_path), load_config("smoke")) as logger:
        logger.on_event({"kind": "phase_started", "phase": "cognate"})
        logger.on_event(PROGRESS)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_wandb_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")

    def broken(self: PhaseLogger) -> None:
        raise RuntimeError("no space for wandb")

    monkeypatch.setattr(PhaseLogger, "_open", broken)
    with PipelineLogger(str(tmp_path), load_config("smoke")) as logger:
        logger.on_event({"kind": "phase_started", "phase": "cognate"})
        logger.on_event(PROGRESS)
    assert caplog.text.count("no space for wandb") == 1
