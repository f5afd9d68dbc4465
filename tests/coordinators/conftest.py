"""What tests of coordinators share."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def recorded() -> Callable[[Path, bytes], bytes]:
    """Return what returns a run's W&B file once a key is in it; W&B writes it from a process of its own."""

    def read(run: Path, key: bytes) -> bytes:
        data = b""
        for _ in range(100):
            (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
            if key in (data := file.read_bytes()):
                break
            time.sleep(0.1)
        return data

    return read
