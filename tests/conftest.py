"""One local Ray cluster for the session, and one thread for torch: tests share two cores with it."""

import os
import uuid
from collections.abc import Iterator

import pytest
import torch

os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("WANDB_MODE", "offline")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A cluster of this test session's own."""
    import ray

    from coordinators.cluster import leave

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=150 << 20,
        include_dashboard=False,
        namespace=uuid.uuid4().hex,
        log_to_driver=False,
    )
    yield
    leave()
