"""The evolver kills islands of its search that are frozen, which Ray Tune would wait for for ever."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError

from actors.agent import as_actor, with_health_group
from actors.evomerge import Evolver
from actors.processes import Whereabouts


class Island:
    """Says where it is."""

    def where(self) -> Whereabouts:
        return Whereabouts.here()


@pytest.mark.usefixtures("ray_cluster")
def test_a_frozen_island_is_killed_and_another_is_not(tmp_path: Path) -> None:
    remote: Any = ray.remote
    name = f"{tmp_path.name}/evomerge/evolver"
    evolver = as_actor(with_health_group(Evolver), name, num_cpus=0, concurrency_groups={"health": 2})
    handle = evolver.remote(str(tmp_path), "evomerge", "evolver")
    frozen, other = (remote(num_cpus=0)(Island).remote() for _ in range(2))
    for island in (frozen, other):
        ray.get(handle.watch.remote(ray.get(island.where.remote())))
    os.kill(ray.get(frozen.where.remote()).pid, signal.SIGSTOP)
    with pytest.raises(ActorDiedError):
        ray.get(frozen.where.remote(), timeout=60)
    ray.get(other.where.remote(), timeout=60)
    for actor in (handle, other):
        ray.kill(actor)
