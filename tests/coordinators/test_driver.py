"""The driver gives up a pipeline's actor that is frozen, and not one that is still starting."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from coordinators import driver
from coordinators.config import load_config
from phases.errors import ArtifactError, ForgeError
from recovery.journal import Journal
from recovery.lease import Lease

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote(num_cpus=0)
class Pipeline:
    def __init__(self, starts: float, runs: float) -> None:
        time.sleep(starts)
        self.seconds = runs

    async def run(self) -> str:
        await asyncio.sleep(self.seconds)
        return "result"

    async def events(self) -> list[dict[str, Any]]:
        return [{"pid": os.getpid()}]


@ray.remote(num_cpus=0)
class Mortal:
    """Leaves a file when it is made; cannot be made, or dies at work `deaths` times."""

    def __init__(self, run: str, broken: bool, deaths: int) -> None:
        self.made = len(list(Path(run).glob("made-*"))) + 1
        (Path(run) / f"made-{self.made}").touch()
        self.deaths = deaths
        if broken:
            raise ArtifactError("journal: damaged")

    async def run(self) -> str:
        if self.made <= self.deaths:
            os._exit(1)
        return "result"

    async def events(self) -> list[dict[str, Any]]:
        return []


def keep_alive(lease: Lease, monkeypatch: pytest.MonkeyPatch, broken: bool, deaths: int) -> Any:
    remote: Any = Mortal
    monkeypatch.setattr(driver, "spawn_pipeline", lambda run, *_: remote.remote(run, broken, deaths))
    overrides = ["supervision.pipeline_restarts=2", "recovery.delays={initial_seconds: 0.01, jitter_seconds: 0}"]
    return driver._kept_alive(lease.run, load_config("smoke", overrides=overrides), lease, [])


def test_a_pipeline_that_dies_is_started_again_as_often_as_configured(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = list[int]()
    monkeypatch.setattr(driver, "delay", lambda _, strategy, attempt, seed: delays.append(attempt) or 0.0)
    assert keep_alive(lease, monkeypatch, broken=False, deaths=2) == "result"
    assert [event.data["left"] for event in Journal(lease.run).read("pipeline_restarted")] == [1, 0]
    assert delays == [1, 2]
    for made in Path(lease.run).glob("made-*"):
        made.unlink()
    with pytest.raises(ForgeError, match="forge resume"):
        keep_alive(lease, monkeypatch, broken=False, deaths=3)


def test_a_pipeline_that_cannot_be_made_is_not_tried_again(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="journal: damaged"):
        keep_alive(lease, monkeypatch, broken=True, deaths=0)
    assert len(list(Path(lease.run).glob("made-*"))) == 1


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    with Lease(str(tmp_path)) as held:
        yield held


def pipeline(starts: float, runs: float) -> Any:
    remote: Any = Pipeline
    return remote.remote(starts, runs)


def test_a_frozen_pipeline_is_given_up(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_SILENCE_SECONDS", 2.0)

    def freeze(event: dict[str, Any]) -> None:
        os.kill(event["pid"], signal.SIGSTOP)

    with pytest.raises(RayActorError):
        driver._follow(pipeline(0, 600), lease, [freeze])


def test_a_pipeline_that_is_still_starting_is_not(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_SILENCE_SECONDS", 0.5)
    result: Any = driver._follow(pipeline(2, 0), lease, [])
    assert result == "result"
