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
