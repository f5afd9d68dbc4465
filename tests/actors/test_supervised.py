"""Supervised agents on real actors that are killed and stopped from outside, by their pid."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.agent import Agent, Attempt, Task
from actors.supervised import Stage, _avoidable, _keep_away
from recovery.children import ChildDownError, Loss, RestartStrategy, SupervisorGaveUpError
from recovery.classify import Classifier
from recovery.commits import Commits
from recovery.supervision import SupervisionSettings
from recovery.taxonomy import ErrorClass

PATIENCE = 90.0  # seconds for whatever has to happen on a busy machine
SETTINGS = SupervisionSettings(beat_seconds=0.1, freeze_seconds=0.5, snapshot_seconds=0.1)


class Counting(Agent):
    """Counts, and takes its count over to its next life."""

    count = 0

    async def whoami(self) -> tuple[int, int]:
        return os.getpid(), self.count

    async def add(self, number: int) -> int:
        self.count += number
        self.report("count", self.count, 0, {})
        return self.count

    async def rest(self) -> None:
        await asyncio.sleep(PATIENCE)

    async def block(self, seconds: float) -> None:
        time.sleep(seconds)

    def square(self, task: str, number: int) -> int:
        return number * number

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"count": self.count}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.count = snapshot["count"]
        super().restore({"progress": snapshot["progress"]})


class Broken(Agent):
    """Cannot be made."""

    def __init__(self, run: str, phase: str, name: str) -> None:
        super().__init__(run, phase, name)
        raise FileNotFoundError("weights.bin")


class Events(list[dict[str, Any]]):
    def emit(self, kind: str, **data: Any) -> None:
        self.append({"kind": kind} | data)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self if event["kind"] == kind]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 2 * PATIENCE))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("sent", "loss"), [(signal.SIGKILL, Loss.DIED), (signal.SIGSTOP, Loss.HUNG)])
def test_a_killed_and_a_stopped_agent_are_noticed_and_replaced_with_their_state(
    tmp_path: Path, sent: signal.Signals, loss: Loss
) -> None:
    async def scenario() -> None:
        events = Events()
        with Stage(str(tmp_path), "test", SETTINGS) as stage:
            child = stage.child("one", Counting)
            supervisor = await stage.supervisor("s", [child], emit=events.emit).start()
            await supervisor.call("one", "add", 5, timeout=PATIENCE)
            await until(lambda: (supervisor._children["one"].snapshot or {}).get("count") == 5)
            pid, _ = await supervisor.call("one", "whoami", timeout=PATIENCE)
            resting = asyncio.create_task(supervisor.call("one", "rest", timeout=PATIENCE))
            await asyncio.sleep(0.1)
            os.kill(pid, sent)
            with pytest.raises(ChildDownError, match=f"one {loss}") as caught:
                await resting
            if loss is Loss.DIED:
                assert Classifier().classify(caught.value) is ErrorClass.CRASH
            successor, count = await supervisor.call("one", "whoami", timeout=PATIENCE)
            assert (successor != pid, count) == (True, 5)
            assert [event["loss"] for event in events.of("child_down")] == [loss]
            await until(lambda: not _runs(pid))
            await supervisor.stop()
            await until(lambda: not _runs(successor))

    run(scenario())


def _runs(pid: int) -> bool:
    """Say whether a process is there; one that nobody has reaped is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.usefixtures("ray_cluster")
def test_a_spare_takes_over_in_the_process_that_was_started_ahead(tmp_path: Path) -> None:
    async def scenario() -> None:
        events = Events()
        with Stage(str(tmp_path), "test", SETTINGS) as stage:
            child = stage.child("one", Counting, spares=1)
            supervisor = await stage.supervisor("s", [child], emit=events.emit).start()
            spares = supervisor._children["one"].spares
            await until(lambda: len(spares._ready) == 1)
            waiting = spares._ready[0]
            pid, _ = await supervisor.call("one", "whoami", timeout=PATIENCE)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: bool(events.of("child_down")))
            assert (await supervisor.call("one", "whoami", timeout=PATIENCE))[0] == waiting.pid  # type: ignore[attr-defined]
            await until(lambda: len(spares._ready) == 1)
            assert len(events.of("spare_used")) == 1
            await supervisor.stop()

    run(scenario())


@pytest.mark.usefixtures("ray_cluster")
def test_an_agent_works_and_blocks_its_loop_and_is_left_alone_and_one_without_progress_is_stuck(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"stall_seconds": 2.0})

    async def scenario() -> None:
        events = Events()
        with Stage(str(tmp_path), "test", settings) as stage:
            child = stage.child("one", Counting)
            supervisor = await stage.supervisor("s", [child], emit=events.emit).start()
            task = Task("t", "one", "square", {"number": 7})
            attempt = Attempt(Commits(str(tmp_path)).begin("test/t"))
            report = await supervisor.call("one", "deliver", task, attempt, timeout=PATIENCE)
            assert await report == 49  # a reference, given as soon as the task is done
            await supervisor.call("one", "block", 1.5, timeout=PATIENCE)
            await supervisor.call("one", "block", 1.5, timeout=PATIENCE)
            assert events.of("child_down") == []
            with pytest.raises(ChildDownError, match="one stuck: no progress in 2 s"):
                await supervisor.call("one", "block", PATIENCE, timeout=PATIENCE)
            await supervisor.stop()

    run(scenario())


@pytest.mark.usefixtures("ray_cluster")
def test_an_agent_whose_heartbeats_do_not_arrive_is_asked_and_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        events = Events()
        stage = Stage(str(tmp_path), "test", SETTINGS)
        supervisor = await stage.supervisor("s", [stage.child("one", Counting)], emit=events.emit).start()
        pid, _ = await supervisor.call("one", "whoami", timeout=PATIENCE)
        stage.heartbeats.close()
        await until(lambda: len(events.of("child_silent")) >= 4)
        assert events.of("child_down") == []
        assert (await supervisor.call("one", "whoami", timeout=PATIENCE))[0] == pid
        await supervisor.stop()

    run(scenario())


@pytest.mark.usefixtures("ray_cluster")
def test_an_agent_that_cannot_be_made_is_given_up_with_its_cause(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"restarts": 1})

    async def scenario() -> None:
        with Stage(str(tmp_path), "test", settings) as stage:
            with pytest.raises(SupervisorGaveUpError, match="broken did not start") as caught:
                await stage.supervisor("s", [stage.child("broken", Broken)]).start()
            assert "weights.bin" in str(caught.value.__cause__)

    run(scenario())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_agents_after_a_failed_one_are_replaced_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        with Stage(str(tmp_path), "test", SETTINGS) as stage:
            children = [stage.child(name, Counting) for name in ("one", "two", "three")]
            supervisor = stage.supervisor("s", children, strategy=RestartStrategy.REST_FOR_ONE)
            await supervisor.start()

            async def pids() -> list[int]:
                names = ("one", "two", "three")
                return [(await supervisor.call(name, "whoami", timeout=PATIENCE))[0] for name in names]

            before = await pids()
            os.kill(before[1], signal.SIGKILL)
            await until(lambda: not supervisor.alive("two"))
            await until(lambda: all(supervisor.alive(name) for name in ("one", "two", "three")))
            after = await pids()
            assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False]
            await supervisor.stop()

    run(scenario())


@pytest.mark.usefixtures("ray_cluster")
def test_a_bad_node_is_kept_away_from_only_where_there_is_another() -> None:
    here = ray.get_runtime_context().get_node_id()
    away = frozenset({"f" * 56})
    assert _avoidable(frozenset({here}), 0, 0) == frozenset()
    assert _avoidable(away, 1, 0) == away
    assert _avoidable(away, 10**6, 0) == frozenset()
    assert _keep_away(frozenset()) == {}
    assert _keep_away(away) == {"label_selector": {"ray.io/node-id": f"!in({'f' * 56})"}}


NODES = """
import asyncio, os, signal, sys
import ray
from ray.cluster_utils import Cluster
from actors.agent import Agent
from actors.supervised import Stage
from recovery.supervision import SupervisionSettings

class Where(Agent):
    async def where(self):
        return os.getpid(), ray.get_runtime_context().get_node_id()

async def main():
    settings = SupervisionSettings(beat_seconds=0.2, freeze_seconds=1, hang_seconds=300, node_failures=1)
    events = []
    with Stage(sys.argv[1], "test", settings) as stage:
        child = stage.child("one", Where, cpus=1)
        supervisor = await stage.supervisor("s", [child], emit=lambda kind, **d: events.append(d)).start()
        nodes = []
        for sent in (signal.SIGKILL, signal.SIGSTOP, None):
            pid, node = await supervisor.call("one", "where", timeout=180)
            assert node != stage.node
            nodes.append(node)
            if sent is not None:
                os.kill(pid, sent)
                while supervisor.alive("one"):
                    await asyncio.sleep(0.05)
        losses = [event["loss"] for event in events if "loss" in event]
        print(losses, nodes[0] == nodes[1], nodes[2] in nodes[:2])
        await supervisor.stop()

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
first = cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
ray.init(address=cluster.address, log_to_driver=False)
cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
try:
    asyncio.run(main())
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
def test_on_other_nodes_death_and_a_stopped_process_are_noticed_and_a_bad_node_is_left(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NODES, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert f"{['died', 'hung']} False True" in done.stdout, done.stderr[-2000:]  # where all are bad, any will do
