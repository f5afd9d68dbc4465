"""The monitor sees real agents, nodes and queues, writes what it sees, and cannot hurt the run that feeds it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.agent import Agent, as_actor, with_health_group
from actors.flow import FlowClient
from coordinators.dataflow import spawn_flow
from coordinators.health import HISTORY, NEWEST, OLDER, HealthFeed, NodeProbe, spawn_monitor
from phases.storage import folder_name
from recovery.health import HealthSettings

SETTINGS = HealthSettings(interval_seconds=0.2, answer_seconds=2)
WORK = {"phase": "p", "task": "t", "agent": "a"}


def newest(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / NEWEST).read_text())
    return report


def spawn(run: str, name: str) -> Any:
    """Start an agent of phase `p`."""
    actor = as_actor(with_health_group(Agent), f"{folder_name(run)}/p/{name}", concurrency_groups={"health": 2})
    return actor.remote(run, "p", name)


async def pid_of(handle: Any) -> int:
    pid: int = await handle.__ray_call__.remote(lambda _: os.getpid())
    return pid


async def until(condition: Any, seconds: float = 300) -> None:
    """Wait for something that must come sooner or later."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def test_a_node_is_measured() -> None:
    stats = NodeProbe(["/nowhere", os.sep]).stats()
    assert 0 < stats["memory"]["used"] < stats["memory"]["total"]
    assert stats["cpus"] == os.cpu_count()
    assert all(0 < disk["free"] <= disk["total"] for disk in stats["disks"].values())
    assert os.sep in stats["disks"]
    assert isinstance(stats["gpus"], list)


@pytest.mark.usefixtures("ray_cluster")
def test_agents_nodes_and_queues_are_seen_and_written(tmp_path: Path) -> None:
    run = tmp_path / "run"

    async def scenario() -> None:
        agent = spawn(str(run), "a")
        await agent.progress.remote()
        flow = spawn_flow(str(run))
        client = FlowClient(str(run))
        await client.call("subscribe", "topic", "receiver")
        await client.publish("topic", [b"x"] * 3, source="s", first=0)
        monitor = spawn_monitor(str(run), SETTINGS)
        await monitor.observe.remote([(time.time(), "task_started", WORK)])
        report = await monitor.look.remote()
        assert report["agents"]["p/a"]["uptime"] > 0
        assert report["agents"]["p/a"]["task"] == "t"
        assert report["queues"]["receiver"]["pending"] == 3
        (node,) = report["nodes"].values()
        assert node["memory"]["used"] > 0
        assert report["availability"]["calls"] >= 1
        assert report["availability"]["failed"] == 0
        before = newest(run)["time"]
        await until(lambda: newest(run)["time"] > before)
        assert json.loads((run / HISTORY).read_text().splitlines()[0])["nodes"]
        for actor in (agent, flow, monitor):
            ray.kill(actor)

    asyncio.run(scenario())


@pytest.mark.usefixtures("ray_cluster")
def test_an_agent_that_was_replaced_on_purpose_has_missed_nothing(tmp_path: Path) -> None:
    run = str(tmp_path / "run")

    async def scenario() -> None:
        monitor = spawn_monitor(run, HealthSettings(interval_seconds=1000, answer_seconds=20))
        for life in (1, 2):
            agent = spawn(run, f"a~{life}" if life > 1 else "a")
            await agent.progress.remote()
            await monitor.observe.remote([(time.time(), "task_started", WORK)])
            report = await monitor.look.remote()
            assert report["agents"]["p/a"]["missed"] == 0
            assert report["agents"]["p/a"]["uptime"] > 0
            ray.kill(agent)  # to make way for another
        ray.kill(monitor)

    asyncio.run(scenario())


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_an_agent_that_does_not_answer_counts_and_is_told(tmp_path: Path, sent: signal.Signals) -> None:
    run, alerts = tmp_path / "run", list[dict[str, Any]]()

    async def scenario() -> None:
        agent = spawn(str(run), "a")
        victim = await pid_of(agent)
        async with HealthFeed(str(run), HealthSettings(interval_seconds=0.2, answer_seconds=0.5), emit) as feed:
            feed.note("task_started", WORK)
            await until(lambda: (run / NEWEST).exists() and newest(run)["availability"]["calls"])
            os.kill(victim, sent)
            await until(lambda: alerts)
        os.kill(victim, signal.SIGKILL) if sent is signal.SIGSTOP else None

    def emit(kind: str, **data: Any) -> None:
        alerts.append({"kind": kind} | data)

    asyncio.run(scenario())
    assert [(alert["kind"], alert["key"]) for alert in alerts] == [("alert", "silent p/a")]
    assert newest(run)["availability"]["failed"] >= 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_monitor_that_dies_is_replaced_and_one_that_cannot_write_is_survived(tmp_path: Path) -> None:
    run = tmp_path / "run"

    async def scenario() -> None:
        async with HealthFeed(str(run), SETTINGS, lambda *_, **__: None) as feed:
            feed.note("task_started", WORK)
            await until(lambda: (run / NEWEST).exists() and newest(run)["agents"])
            first = await pid_of(feed._monitor)
            os.kill(first, signal.SIGKILL)
            before = newest(run)["time"]
            await until(lambda: newest(run)["time"] > before + 1 and newest(run)["agents"])
            assert newest(run)["agents"]["p/a"]["task"] == "t"
            assert await pid_of(feed._monitor) != first
        with pytest.raises(ValueError, match="Failed to look up actor"):
            ray.get_actor(f"{folder_name(str(run))}/health", "agent-forge")
        blocked = tmp_path / "blocked"
        blocked.write_text("a file where the run should be")
        async with HealthFeed(str(blocked), SETTINGS, lambda *_, **__: None) as feed:
            feed.note("task_started", WORK)
            await until(lambda: feed._answered)
        assert blocked.read_text().startswith("a file")

    asyncio.run(scenario())


@pytest.mark.usefixtures("ray_cluster")
def test_a_frozen_monitor_does_not_keep_a_run_from_ending(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = HealthSettings(interval_seconds=0.2, answer_seconds=0.5)

    async def scenario() -> int:
        async with HealthFeed(str(run), settings, lambda *_, **__: None) as feed:
            await until(lambda: feed._answered)
            frozen = await pid_of(feed._monitor)
            os.kill(frozen, signal.SIGSTOP)
            feed.note("task_started", WORK)
        return frozen

    frozen = asyncio.run(asyncio.wait_for(scenario(), 600))
    with suppress(ProcessLookupError):
        os.kill(frozen, signal.SIGKILL)


TWO_NODES = """
import asyncio, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from coordinators.health import spawn_monitor
from recovery.health import HealthSettings

def size(report):
    return len([node for node in report["nodes"].values() if node["memory"]["used"]])

async def nodes(monitor, count):
    deadline = time.monotonic() + 100
    while size(report := await monitor.look.remote()) != count:
        assert time.monotonic() < deadline, report["nodes"]
        await asyncio.sleep(0.5)

async def scenario():
    monitor = spawn_monitor(sys.argv[1], HealthSettings())
    await nodes(monitor, 1)  # so it is on the node that stays
    second = cluster.add_node(num_cpus=1, **size_of_store)
    await nodes(monitor, 2)
    await asyncio.to_thread(cluster.remove_node, second)
    await nodes(monitor, 1)

size_of_store = {"object_store_memory": 80 << 20}
fast = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 4}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": fast} | size_of_store)
ray.init(address=cluster.address, log_to_driver=False)
asyncio.run(scenario())
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_each_node_is_measured_and_one_that_is_lost_is_left_out(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-c", TWO_NODES, str(tmp_path / "run")]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root, env=environment)
    assert outcome.returncode == 0, outcome.stderr[-3000:]


def test_the_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coordinators import health

    monkeypatch.setattr(health, "_HISTORY_BYTES", 2000)
    history = health._History(str(tmp_path))
    for number in range(200):
        history.write({"time": 100.0 * number, "text": "x" * 80})
        assert (tmp_path / HISTORY).stat().st_size <= 2000
    kept = [json.loads(line) for name in (OLDER, HISTORY) for line in (tmp_path / name).read_text().splitlines()]
    times = [report["time"] for report in kept]
    assert times == [100.0 * number for number in range(200 - len(times), 200)]
    assert len(times) > 15
    assert newest(tmp_path)["time"] == 19900.0
    again = health._History(str(tmp_path))
    assert again._bytes == (tmp_path / HISTORY).stat().st_size


@pytest.mark.usefixtures("ray_cluster")
def test_the_gauges_appear_among_rays_metrics(tmp_path: Path) -> None:
    run = str(tmp_path / "gauges")

    async def scenario() -> dict[str, float]:
        agent = spawn(run, "a")
        await agent.progress.remote()
        async with HealthFeed(run, SETTINGS, lambda *_, **__: None) as feed:
            feed.note("task_started", WORK)
            shown = dict[str, float]()
            deadline = time.monotonic() + 300
            while not shown.keys() >= {"ray_forge_agent_silent_seconds", "ray_forge_health_calls"}:
                assert time.monotonic() < deadline, shown
                await asyncio.sleep(0.5)
                own = [line for line in (await asyncio.to_thread(metrics)).splitlines() if 'run="gauges"' in line]
                shown = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in own}
        ray.kill(agent)
        return shown

    assert asyncio.run(scenario())["ray_forge_health_calls"] >= 1


def metrics() -> str:
    """Return what Ray exports on this node."""
    (node,) = ray.nodes()
    where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(where, timeout=10) as answer:
        text: str = answer.read().decode()
    return text
