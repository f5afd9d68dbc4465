"""The status of a run comes from its files alone, says what is old or over, and shows text as it is."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinators.config import dump_config, load_config
from coordinators.dataflow import DataFlow, flow_uri
from coordinators.deliveries import FlowSettings
from coordinators.live import LiveView
from coordinators.status import age, read_config, run_status
from coordinators.statusview import Changes, render, watch, watch_on
from phases import storage
from phases.errors import ArtifactError
from recovery.checkpoints import Checkpoints
from recovery.health import Health, HealthSettings
from recovery.inbox import Receipt
from recovery.journal import Journal
from recovery.lease import Lease

WORK = {"phase": "cognate", "task": "train a", "agent": "a"}
FAILURE = WORK | {"error_class": "crash", "error": "ActorDiedError: [bold]gone"}


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run that was begun, in which a task has failed once and goes on."""
    run = str(tmp_path / "run")
    config = dump_config(load_config("smoke", overrides=["phases=[cognate]"]))
    storage.write_bytes(storage.join(run, "config.yaml"), config.encode())
    journal = Journal(run)
    journal.append("run_started", preset="smoke")
    journal.append("phase_started", phase="cognate")
    journal.append("task_started", **WORK)
    journal.append("recovery", **FAILURE, strategy="restart")
    journal.append("breaker", phase="cognate", agent="a", before="closed", after="open", reason="r")
    return run


def monitored(run: str, at: float) -> None:
    """Write a report of a monitor that looked at the time `at`."""
    health = Health(HealthSettings(), at - 60)
    health.on_event("task_started", WORK, at - 50)
    progress = {"task": "train a", "step": 7, "steps": 24, "metrics": {"loss": 2.5}}
    health.on_heartbeat("cognate/a", at - 2, {"agent": "a", "uptime": 9.0, "progress": progress})
    memory, disks = {"used": 4_000_000_000, "total": 16_000_000_000}, {"/": {"free": 10**11, "total": 10**12}}
    node = {"cpu_percent": 50.0, "cpus": 2, "load": 1.0, "memory": memory, "disks": disks}
    gpu = {"name": "G", "percent": 70, "used": 10**10, "total": 8 * 10**10}
    health.on_nodes({"n1": node | {"gpus": [gpu]}}, at)
    for _ in range(3):
        health.on_heartbeat("cognate/b", at, None)
    health.on_event("breaker", {"callee": "b", "before": "closed", "after": "open"}, at)
    health.judge(at)
    storage.write_json(storage.join(run, "health.json"), health.report(at))


def dead_letter(run: str) -> None:
    """Let the run's data flow give up a message."""

    async def scenario() -> None:
        flow = DataFlow(flow_uri(run), FlowSettings(max_attempts=2, retry_seconds=0))
        await flow.subscribe("topic", "receiver")
        await flow.publish("topic", [b"poison"], source="s", first=0)
        for _ in range(2):
            delivery = await flow.pull("receiver", wait=10)
            assert delivery is not None
            flow.acknowledge("receiver", Receipt(delivery.id, {delivery.messages[0].offset: "cannot [red]be read"}))
            await flow.close()

    asyncio.run(scenario())


def shown(state: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(render(state))
    return out.getvalue()


def test_the_checkpoints_of_all_phases_are_listed(run: str) -> None:
    for folder, step in (("01_cognate/checkpoints/a", 4), ("04_bitnet/checkpoints/ternary", 8)):
        Checkpoints(storage.join(run, folder)).save(step, {"x": b"x"})
    assert run_status(run)["checkpoints"] == {"cognate/a": 4, "bitnet/ternary": 8}


def test_everything_is_in_it(run: str) -> None:
    monitored(run, time.time() - 3)
    dead_letter(run)
    Journal(run).append("alert", key="disk n", text="disk runs out", level="warning", time=1.0)
    with Lease(run):
        state = run_status(run)
    assert state == json.loads(json.dumps(state))
    assert state["live"]
    assert state["state"] == f"running: process {os.getpid()} on {socket.gethostname()}"
    assert state["phases"] == {"cognate": "begun"}
    assert state["tasks"] == {"cognate/train a": "waits for restart: ActorDiedError: [bold]gone"}
    assert state["recoveries_by_strategy"] == {"restart": 1}
    assert state["breakers"] == {"cognate/a": "open"}
    assert state["queues"]["receiver"]["dead"][0]["reason"] == "cannot [red]be read"
    text = shown(state)
    for expected in (
        "cognate/train a  waits for restart: ActorDiedError: [bold]gone",
        "7/24",
        "recoveries (restart 1)",
        "train a: crash -> restart (ActorDiedError: [bold]gone)",
        "receiver: topic 0 of s, 6 bytes: cannot [red]be read",
        "50 % of 2",
        "4.0 of 16.0 GB",
        "100 of 1000 GB",
        "70 % 10/80 GB",
        "at least 0.0 %",
        "calls of b are refused: its circuit breaker is open",
        "disk runs out",
    ):
        assert expected in text


def test_what_has_ended_is_not_called_running(run: str) -> None:
    assert run_status(run)["state"] == "interrupted: forge resume goes on"
    assert run_status(run)["tasks"] == {"cognate/train a": "interrupted"}
    monitored(run, time.time() - 7200)
    text = shown(run_status(run))
    assert "health, 2 h ago" in text
    assert "7/24" not in text  # nobody is at it
    Journal(run).append("run_stopped", error="train a: out of memory\nlower batch_size")
    state = run_status(run)
    assert state["state"] == "stopped: train a: out of memory; lower batch_size; forge resume goes on"
    assert state["alerts"][-1]["text"].startswith("train a: out of memory")
    with Lease(run):
        assert run_status(run)["live"]
    assert not run_status(run)["live"]


def test_a_driver_that_was_killed_or_has_gone_silent_is_not_called_running(run: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    sign = {"host": socket.gethostname(), "pid": gone.pid, "started": "1", "time": time.time()}
    storage.write_json(storage.join(run, "lease/00000001"), sign)
    assert not run_status(run)["live"]
    storage.write_json(storage.join(run, "lease/00000001"), sign | {"host": "elsewhere"})
    assert run_status(run)["live"]
    storage.write_json(storage.join(run, "lease/00000001.beat"), sign | {"host": "elsewhere", "time": time.time() - 60})
    assert not run_status(run)["live"]
    storage.write_bytes(storage.join(run, "lease/00000001.beat"), b"torn")
    assert run_status(run)["live"]
    storage.write_bytes(storage.join(run, "lease/00000001"), b"torn")
    assert not run_status(run)["live"]


def test_a_damaged_part_is_named_and_the_rest_is_there(run: str) -> None:
    dead_letter(run)
    storage.write_bytes(storage.join(run, "health.json"), b"{torn")
    for name in storage.names(flow_uri(run)):
        storage.write_bytes(storage.join(flow_uri(run), name), b"torn")
    state = run_status(run)
    assert len(state["problems"]) == 2
    assert "health.json" in state["problems"][0]
    assert "dataflow" in state["problems"][1]
    assert state["phases"] == {"cognate": "begun"}
    assert all(problem in shown(state) for problem in state["problems"])


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run in it"):
        read_config(str(tmp_path))


def test_a_watch_off_a_terminal_prints_what_changes_and_ends_with_the_run(run: str) -> None:
    lease, journal, out = Lease(run), Journal(run), io.StringIO()
    console = Console(file=out, width=60)
    changes, looks = Changes(), list[list[str]]()

    def on_look(_: float) -> None:
        """What happens in the run between two looks."""
        match len(looks):
            case 1:
                journal.append("task_started", **WORK)
            case 2:
                monitored(run, time.time())
            case 3:
                journal.append("task_finished", **WORK)
            case 4:
                lease.__exit__()

    lease.__enter__()
    watch(run, lambda state: looks.append(changes.of(state)), sleep=on_look)
    assert "task cognate/train a: waits for restart: ActorDiedError: [bold]gone" in looks[0]
    assert looks[1] == ["task cognate/train a: running"]
    assert looks[2] == ["now breaker b: calls of b are refused: its circuit breaker is open"]
    assert looks[3] == ["task cognate/train a: done"]
    assert looks[4] == ["state: interrupted: forge resume goes on"]
    assert len(looks) == 5
    watch_on(run, console)
    assert "task cognate/train a: done\n" in out.getvalue()


def test_a_watch_in_a_terminal_draws_tables(run: str) -> None:
    out = io.StringIO()
    watch_on(run, Console(file=out, force_terminal=True, width=120))
    assert "interrupted" in out.getvalue()


def test_a_moment_without_a_readable_file_does_not_end_a_watch(run: str) -> None:
    config, sleeps = storage.join(run, "config.yaml"), list[float]()
    content = storage.read_bytes(config)
    storage.remove(config)

    def restore(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            storage.write_bytes(config, content)

    shown = list[dict[str, Any]]()
    watch(run, shown.append, sleep=restore)
    assert len(sleeps) == 3
    assert len(shown) == 1
    storage.remove(config)
    with pytest.raises(ArtifactError):
        watch(run, shown.append, sleep=lambda _: None)


@pytest.mark.slow
def test_a_watch_ends_quietly_at_ctrl_c_and_prints_json_lines_if_asked(run: str) -> None:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, str(root / "forge.py"), "status", run, "--watch", "--json"]
    with Lease(run):
        watcher = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            # Whoever runs the tests in the background has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert watcher.stdout is not None
        lines = [watcher.stdout.readline() for _ in range(2)]
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate(timeout=60)
    assert errors == ""
    looks = [json.loads(line) for line in lines]
    assert looks[0]["live"]
    assert looks[1]["time"] > looks[0]["time"]
    assert watcher.returncode == 0


def test_alerts_are_told_where_the_run_is_shown() -> None:
    out = io.StringIO()
    with LiveView(console=Console(file=out, width=40)) as view:
        view.on_event({"kind": "alert", "key": "k", "level": "warning", "text": "disk [of n1] runs out", "time": 1.0})
        view.on_event({"kind": "cluster_joined", "address": "h:6379"})
        view.on_event({"kind": "recovery", **FAILURE, "strategy": "restart"})
    assert out.getvalue().splitlines() == [
        "warning: disk [of n1] runs out",
        "running on the Ray cluster at h:6379",
        "cognate train a crash, restart: ActorDiedError: [bold]gone",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (119, "119 s"), (121, "2 min"), (7300, "2 h"), (2e5, "2 d")])
def test_ages_are_short(seconds: float, text: str) -> None:
    assert age(1000.0, 1000.0 + seconds) == text
    assert age("1970-01-01T00:00:10+00:00", 10 + seconds) == text
