"""Processes of workers that are stopped are seen to be, and killed, and others are left alone."""

import asyncio
import os
import signal
from typing import Any

import pytest
import ray

from actors.processes import Whereabouts, kill_once_stopped

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Subject:
    """Says where it is."""

    def where(self) -> Whereabouts:
        return Whereabouts.here()


def start() -> tuple[Any, Whereabouts]:
    remote: Any = ray.remote
    actor = remote(num_cpus=0)(Subject).remote()
    return actor, ray.get(actor.where.remote())


def test_a_process_is_stopped_once_it_is_and_no_longer_when_it_goes_on() -> None:
    actor, process = start()
    assert not process.stopped()
    os.kill(process.pid, signal.SIGSTOP)
    while not process.stopped():
        pass
    os.kill(process.pid, signal.SIGCONT)
    assert ray.get(actor.where.remote()) == process
    assert not process.stopped()
    ray.kill(actor)


def test_a_stopped_process_is_killed_which_its_calls_tell() -> None:
    actor, process = start()
    os.kill(process.pid, signal.SIGSTOP)
    call = actor.where.remote()
    asyncio.run(asyncio.wait_for(kill_once_stopped(process, 0.05), 60))
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(call, timeout=60)


def test_a_process_that_runs_is_left_alone() -> None:
    actor, process = start()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(kill_once_stopped(process, 0.01), 0.5))
    assert ray.get(actor.where.remote()) == process
    ray.kill(actor)


def test_what_cannot_be_seen_is_taken_to_run() -> None:
    assert not Whereabouts(os.getpid(), "a" * 56).stopped()
