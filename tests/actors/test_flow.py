"""A publisher and a receiver whose flow is killed under them, on real actors."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.flow import FlowClient, Publisher
from coordinators.dataflow import flow_uri, inspect, spawn_flow
from recovery.inbox import Inbox, Message
from recovery.journal import Journal


async def pid_of(handle: Any) -> int:
    pid: int = await handle.__ray_call__.remote(lambda _: os.getpid())
    return pid


@pytest.mark.usefixtures("ray_cluster")
def test_messages_survive_the_death_of_the_flow(tmp_path: Path) -> None:
    run, inbox, stop = str(tmp_path / "run"), Inbox(str(tmp_path / "inbox")), asyncio.Event()

    def handle(message: Message) -> bytes:
        if message.number == 299:
            loop.call_soon_threadsafe(stop.set)
        return b"%d" % message.number

    async def scenario() -> None:
        flow, client = spawn_flow(run), FlowClient(run)
        await client.call("subscribe", "topic", "receiver")
        publisher = Publisher(client, "source")
        receiving = asyncio.create_task(client.receive("receiver", inbox, handle, stop))
        for number in range(0, 300, 20):
            if number in (100, 200):
                os.kill(await pid_of(flow), signal.SIGKILL)
                publishing = asyncio.create_task(publisher.publish("topic", [b"x"] * 20))
                await asyncio.sleep(0.1)
                flow = spawn_flow(run)
                await publishing
            else:
                await publisher.publish("topic", [b"x"] * 20)
        await receiving
        ray.kill(flow)

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        runner.run(asyncio.wait_for(scenario(), 90))
    assert sorted(int(effect) for _, effect in inbox.effects()) == list(range(300))
    assert inspect(flow_uri(run))["receiver"]["dead"] == []
    assert list(Journal(run).read("breaker")) == []
