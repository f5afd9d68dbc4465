"""The data flow without Ray: what is promised, over restarts, stale flows, lost receipts and failing receivers."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coordinators.dataflow import DataFlow, FlowFullError, inspect
from coordinators.deliveries import FlowSettings
from phases.errors import ArtifactError, ConfigError
from recovery.circuit_breaker import BreakerSettings, Transition
from recovery.commits import FencedError
from recovery.inbox import Delivery, Inbox, Receipt
from support.clock import Clock

PATIENT = BreakerSettings(minimum_calls=1000, window=1000)


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "flow") if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


def numbers(delivery: Delivery | None) -> list[int]:
    return [message.number for message in delivery.messages] if delivery else []


def bodies(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


async def opened(uri: str, clock: Clock | None = None, **settings: Any) -> DataFlow:
    flow = DataFlow(uri, FlowSettings(**{"breaker": PATIENT} | settings), clock=clock or Clock())
    await flow.subscribe("topic", "receiver")
    return flow


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(limited())


def test_messages_arrive_in_order_by_priority_and_in_batches(uri: str) -> None:
    async def scenario() -> None:
        flow = await opened(uri)
        await flow.publish("topic", bodies(5), source="s", first=0)
        await flow.publish("topic", bodies(2, 5), source="s", first=5, priority=9)
        first = await flow.pull("receiver", limit=4)
        assert numbers(first) == [5, 6, 0, 1]
        assert first is not None
        assert [message.body for message in first.messages] == [b"5", b"6", b"0", b"1"]
        assert numbers(await flow.pull("receiver", receipt=Receipt(first.id))) == [2, 3, 4]
        assert await flow.pull("receiver") is None

    run(scenario)


def test_every_receiver_of_a_topic_gets_what_comes_after_it_subscribed() -> None:
    async def scenario() -> None:
        flow = await opened(memory())
        await flow.publish("topic", bodies(1), source="s", first=0)
        await flow.subscribe("topic", "second")
        await flow.publish("topic", bodies(1, 1), source="s", first=1)
        assert numbers(await flow.pull("receiver")) == [0, 1]
        assert numbers(await flow.pull("second")) == [1]

    run(scenario)


def test_what_was_published_before_is_known_also_after_a_restart(uri: str) -> None:
    async def scenario() -> None:
        flow = await opened(uri)
        assert await flow.publish("topic", bodies(3), source="s", first=0) == 3
        assert await flow.publish("topic", bodies(3), source="s", first=0) == 0
        assert await flow.publish("topic", bodies(3), source="other", first=0) == 3
        flow = await opened(uri)
        assert flow.next_number("s") == 3
        assert await flow.publish("topic", bodies(5), source="s", first=0) == 2
        both = await asyncio.gather(*(flow.publish("topic", bodies(2, 5), source="s", first=5) for _ in range(2)))
        assert sorted(both) == [0, 2]
        assert numbers(await flow.pull("receiver")) == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6]

    run(scenario)


def test_a_restart_gives_out_what_has_no_receipt_under_the_same_offsets(uri: str) -> None:
    async def scenario() -> None:
        flow = await opened(uri)
        await flow.publish("topic", bodies(6), source="s", first=0)
        first = await flow.pull("receiver", limit=2)
        second = await flow.pull("receiver", limit=2)
        assert first is not None
        assert second is not None
        assert flow.acknowledge("receiver", Receipt(first.id))
        await flow.close()
        flow = await opened(uri)
        again = await flow.pull("receiver")
        assert again is not None
        assert again.messages[:2] == second.messages
        assert numbers(again) == [2, 3, 4, 5]
        assert not flow.acknowledge("receiver", Receipt(second.id))

    run(scenario)


def test_without_a_receipt_in_time_it_is_given_out_again() -> None:
    async def scenario() -> None:
        clock = Clock()
        flow = await opened(memory(), clock, receipt_seconds=10, retry_seconds=1)
        await flow.publish("topic", bodies(1), source="s", first=0)
        late = await flow.pull("receiver")
        assert late is not None
        clock.now = 9.9
        assert await flow.pull("receiver") is None
        clock.now = 10
        assert await flow.pull("receiver") is None
        await flow.close()
        clock.now = 11
        assert numbers(await flow.pull("receiver")) == [0]
        assert not flow.acknowledge("receiver", Receipt(late.id))

    run(scenario)


def test_what_a_lost_receiver_held_is_given_out_at_once() -> None:
    async def scenario() -> None:
        flow = await opened(memory(), retry_seconds=0)
        await flow.publish("topic", bodies(1), source="s", first=0)
        await flow.pull("receiver")
        flow.release("receiver", "its actor died")
        await flow.close()
        assert numbers(await flow.pull("receiver")) == [0]

    run(scenario)


def test_what_always_fails_is_dead_and_can_be_revived(uri: str) -> None:
    async def scenario() -> None:
        clock = Clock()
        flow = await opened(uri, clock, max_attempts=3, retry_seconds=1)
        await flow.publish("topic", bodies(2), source="s", first=0)
        waits = []
        for _ in range(3):
            delivery = await flow.pull("receiver")
            while delivery is None:
                clock.now += 0.5
                delivery = await flow.pull("receiver")
            waits.append(clock.now)
            assert 0 in numbers(delivery)
            flow.acknowledge("receiver", Receipt(delivery.id, {0: "no use"}))
            await flow.close()
        assert waits == [0, 1, 3]
        assert await flow.pull("receiver") is None
        (dead,) = inspect(uri)["receiver"]["dead"]
        assert (dead["source"], dead["number"], dead["reason"]) == ("s", 0, "no use")
        flow = await opened(uri, clock)
        assert flow.status()["receiver"]["dead"] == [dead]
        assert await flow.revive("receiver") == 1
        assert numbers(await flow.pull("receiver")) == [0]
        assert inspect(uri)["receiver"] == {"pending": 1, "retrying": 0, "dead": []}

    run(scenario)


def test_a_dead_letter_that_was_handled_after_all_is_not_handled_again() -> None:
    async def scenario() -> None:
        flow, inbox = await opened(memory(), max_attempts=2, retry_seconds=0), Inbox(memory())
        await flow.publish("topic", bodies(1), source="s", first=0)
        for _ in range(2):
            delivery = await flow.pull("receiver")
            assert delivery is not None
            inbox.commit({message.offset: b"done" for message in delivery.messages})
            flow.release("receiver", "killed before the receipt")
            await flow.close()
        assert await flow.revive("receiver") == 1
        delivery = await flow.pull("receiver")
        assert delivery is not None
        assert inbox.fresh(delivery.messages) == []

    run(scenario)


def test_nobody_is_buried_with_a_neighbour_that_kills_the_receiver() -> None:
    async def scenario() -> None:
        flow = await opened(memory(), batch=64, retry_seconds=0, max_attempts=4)
        await flow.publish("topic", bodies(64), source="s", first=0)
        handled, sizes = list[int](), list[int]()
        while delivery := await flow.pull("receiver"):
            sizes.append(len(delivery.messages))
            if 17 in numbers(delivery):
                flow.release("receiver", "killed")
            else:
                handled += numbers(delivery)
                flow.acknowledge("receiver", Receipt(delivery.id))
            await flow.close()
        assert sorted(handled) == [number for number in range(64) if number != 17]
        assert [letter["number"] for letter in flow.status()["receiver"]["dead"]] == [17]
        assert sorted(set(sizes), reverse=True) == [64, 16, 4, 1]

    run(scenario)


def test_a_full_queue_makes_publishers_wait() -> None:
    async def scenario() -> None:
        flow = await opened(memory(), capacity=10)
        await flow.publish("topic", bodies(8), source="s", first=0)
        with pytest.raises(FlowFullError, match="no room for 4 messages within 0 s: receiver"):
            await flow.publish("topic", bodies(4, 8), source="s", first=8, timeout=0)
        waiting = asyncio.create_task(flow.publish("topic", bodies(4, 8), source="s", first=8))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        delivery = await flow.pull("receiver", limit=2)
        assert delivery is not None
        flow.acknowledge("receiver", Receipt(delivery.id))
        assert await waiting == 4
        assert flow.status()["receiver"]["pending"] == 10

    run(scenario)


def test_publishers_at_the_same_time_do_not_overfill_a_queue() -> None:
    async def scenario() -> None:
        flow = await opened(memory(), capacity=10)
        publishers = (flow.publish("topic", bodies(4), source=f"s{number}", first=0, timeout=0) for number in range(4))
        outcomes = await asyncio.gather(*publishers, return_exceptions=True)
        assert [outcome for outcome in outcomes if outcome == 4] == [4, 4]
        assert flow.status()["receiver"]["pending"] == 8

    run(scenario)


def test_a_waiting_receiver_gets_a_message_when_it_comes() -> None:
    async def scenario() -> None:
        flow = DataFlow(memory())
        await flow.subscribe("topic", "receiver")
        waiting = asyncio.create_task(flow.pull("receiver", wait=20))
        await asyncio.sleep(0.01)
        await flow.publish("topic", bodies(1), source="s", first=0)
        assert numbers(await waiting) == [0]

    run(scenario)


def test_a_receiver_that_fails_is_left_alone_and_probed_with_one_message() -> None:
    async def scenario() -> None:
        clock, changes = Clock(), list[Transition]()
        settings = FlowSettings(breaker=BreakerSettings(window=2, minimum_calls=2, open_seconds=5), retry_seconds=0)
        flow = DataFlow(memory(), settings, clock=clock, on_change=changes.append)
        for receiver in ("receiver", "other"):
            await flow.subscribe("topic", receiver)
        await flow.publish("topic", bodies(20), source="s", first=0)
        for _ in range(2):
            delivery = await flow.pull("receiver", limit=8)
            assert delivery is not None
            failed = {message.offset: "broken" for message in delivery.messages}
            flow.acknowledge("receiver", Receipt(delivery.id, failed))
            await flow.close()
        assert await flow.pull("receiver") is None
        assert flow.status()["receiver"]["breaker"] == "open"
        assert len(numbers(await flow.pull("other"))) == 20
        clock.now = 5
        probe = await flow.pull("receiver")
        assert probe is not None
        assert len(probe.messages) == 1
        assert await flow.pull("receiver") is None
        assert len(numbers(await flow.pull("receiver", receipt=Receipt(probe.id)))) > 1
        assert [change.after for change in changes] == ["open", "half_open", "closed"]

    run(scenario)


def test_a_flow_that_was_taken_over_is_refused_by_the_store(uri: str) -> None:
    async def scenario() -> None:
        stale = await opened(uri)
        await stale.publish("topic", bodies(1), source="s", first=0)
        flow = await opened(uri)
        with pytest.raises(FencedError):
            await stale.publish("topic", bodies(1, 1), source="s", first=1)
        with pytest.raises(FencedError):
            await stale.pull("receiver")
        assert numbers(await flow.pull("receiver")) == [0]

    run(scenario)


def test_a_store_that_fails_stops_the_flow_and_loses_nothing(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        flow = await opened(uri)
        await flow.publish("topic", bodies(1), source="s", first=0)
        with monkeypatch.context() as patch:
            patch.setattr("phases.storage.create", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
            with pytest.raises(OSError, match="disk full"):
                await flow.publish("topic", bodies(1, 1), source="s", first=1)
        with pytest.raises(OSError, match="disk full"):
            await flow.publish("topic", bodies(1, 1), source="s", first=1)
        flow = await opened(uri)
        assert await flow.publish("topic", bodies(1, 1), source="s", first=1) == 1
        assert numbers(await flow.pull("receiver")) == [0, 1]

    run(scenario)


def test_many_publishers_share_a_segment_and_old_ones_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinators.dataflow._COMPACT_SEGMENTS", 5)

    async def scenario() -> None:
        flow = await opened(str(tmp_path))
        published = (flow.publish("topic", bodies(2), source=f"s{number}", first=0) for number in range(200))
        await asyncio.gather(*published)
        assert len(list(tmp_path.iterdir())) <= 5
        for number in range(50):
            await flow.publish("topic", bodies(1), source="t", first=number)
        assert len(list(tmp_path.iterdir())) <= 8
        assert (await opened(str(tmp_path))).status()["receiver"]["pending"] == 450

    run(scenario)


def test_bad_input_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        flow = await opened(str(tmp_path), max_body_bytes=10, capacity=5)
        with pytest.raises(ConfigError, match="topic = 'x': nobody receives it; subscribe first; topics are topic"):
            await flow.publish("x", bodies(1), source="s", first=0)
        with pytest.raises(ConfigError, match="too large; put it into storage"):
            await flow.publish("topic", [bytes(11)], source="s", first=0)
        with pytest.raises(ConfigError, match="more than a queue holds"):
            await flow.publish("topic", bodies(6), source="s", first=0)
        with pytest.raises(ConfigError, match="receiver = 'y': not subscribed"):
            await flow.pull("y")

    run(scenario)
    assert inspect(str(tmp_path / "nothing")) == {}
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=f"{newest.name}: altered or torn"):
        DataFlow(str(tmp_path))
