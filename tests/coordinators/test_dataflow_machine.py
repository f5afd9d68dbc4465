"""The data flow under random crashes, failures and lost receipts, against what was accepted."""

import asyncio
import uuid

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinators.dataflow import DataFlow, FlowFullError, inspect
from coordinators.deliveries import FlowSettings
from recovery.circuit_breaker import BreakerSettings
from recovery.commits import FencedError
from recovery.inbox import Delivery, Inbox, Receipt
from support.clock import Clock

ROUTES = {"a": ("t", ["one", "two"]), "b": ("t", ["one", "two"]), "c": ("u", ["two"])}
SETTINGS = FlowSettings(
    capacity=12,
    batch=4,
    receipt_seconds=5,
    max_attempts=3,
    retry_seconds=1,
    breaker=BreakerSettings(window=4, minimum_calls=3, open_seconds=2),
)


class FlowMachine(RuleBasedStateMachine):
    """Publishers publish again, receivers fail and forget receipts, flows crash while stale ones act on."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.uri, self.clock = f"memory://{uuid.uuid4().hex}", Clock()
        self.stale = list[DataFlow]()
        self.open()
        for topic, receivers in ROUTES.values():
            for receiver in receivers:
                self.runner.run(self.flow.subscribe(topic, receiver))
        self.inboxes = {receiver: Inbox(f"{self.uri}-{receiver}") for receiver in ("one", "two")}
        self.accepted: dict[str, set[int]] = {source: set() for source in ROUTES}
        self.held = list[tuple[DataFlow, str, Delivery]]()

    def open(self) -> None:
        self.flow = DataFlow(self.uri, SETTINGS, clock=self.clock)

    @rule(
        source=st.sampled_from(sorted(ROUTES)),
        back=st.integers(0, 3),
        count=st.integers(1, 6),
        priority=st.integers(0, 2),
    )
    def publish(self, source: str, back: int, count: int, priority: int) -> None:
        first = max(len(self.accepted[source]) - back, 0)
        wanted = set(range(first, first + count))
        try:
            new = self.runner.run(self.publication(self.flow, source, first, count, priority))
        except FlowFullError:
            status = self.flow.status()
            assert any(status[name]["pending"] + len(status[name]["dead"]) + count > 12 for name in ROUTES[source][1])
            return
        assert new == len(wanted - self.accepted[source])
        self.accepted[source] |= wanted

    @precondition(lambda self: self.stale)
    @rule(source=st.sampled_from(sorted(ROUTES)))
    def publish_to_a_stale_flow(self, source: str) -> None:
        with pytest.raises((FencedError, FlowFullError)):
            self.runner.run(self.publication(self.stale[-1], source, 1000, 1, 0))

    async def publication(self, flow: DataFlow, source: str, first: int, count: int, priority: int) -> int:
        contents = [f"{source}:{number}".encode() for number in range(first, first + count)]
        return await flow.publish(ROUTES[source][0], contents, source=source, first=first, priority=priority, timeout=0)

    @rule(receiver=st.sampled_from(["one", "two"]), limit=st.integers(1, 4))
    def pull(self, receiver: str, limit: int) -> None:
        if delivery := self.runner.run(self.flow.pull(receiver, limit=limit)):
            assert 1 <= len(delivery.messages) <= limit
            self.held.append((self.flow, receiver, delivery))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), handles=st.booleans(), sends=st.booleans())
    def finish(self, data: st.DataObject, handles: bool, sends: bool) -> None:
        """Handle a delivery or not, some of it failing, and send the receipt or not."""
        flow, receiver, delivery = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        failed = data.draw(st.sets(st.sampled_from([message.offset for message in delivery.messages])))
        if handles:
            self.handle(receiver, delivery, failed)
            if sends and flow is self.flow:
                self.runner.run(self.receipt(flow, receiver, Receipt(delivery.id, dict.fromkeys(failed, "no"))))

    def handle(self, receiver: str, delivery: Delivery, failed: set[int]) -> None:
        inbox = self.inboxes[receiver]
        good = [message for message in inbox.fresh(delivery.messages) if message.offset not in failed]
        inbox.commit({message.offset: message.body for message in good})

    async def receipt(self, flow: DataFlow, receiver: str, receipt: Receipt) -> None:
        flow.acknowledge(receiver, receipt)

    @rule(seconds=st.sampled_from([1.0, 2.5, 6.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(receiver=st.sampled_from(["one", "two"]))
    def restart_receiver(self, receiver: str) -> None:
        async def release() -> None:
            self.flow.release(receiver, "killed")

        self.inboxes[receiver] = Inbox(f"{self.uri}-{receiver}")
        self.runner.run(release())

    @rule()
    def restart_flow(self) -> None:
        """Crash: what waits to be written may or may not be."""
        self.stale.append(self.flow)
        self.open()

    @rule(receiver=st.sampled_from(["one", "two"]))
    def revive(self, receiver: str) -> None:
        self.runner.run(self.flow.revive(receiver))

    @invariant()
    def queues_are_bounded_and_nothing_is_lost(self) -> None:
        self.runner.run(self.flow.close())
        for receiver, inbox in self.inboxes.items():
            queue = self.flow._state.queues[receiver]
            assert len(queue) <= SETTINGS.capacity
            handled = [effect.decode() for _, effect in inbox.effects()]
            assert len(handled) == len(set(handled))
            left = [
                f"{m.source}:{m.number}" for m in (*queue.pending.values(), *(dead for dead, _ in queue.dead.values()))
            ]
            sources = [source for source, (_, receivers) in ROUTES.items() if receiver in receivers]
            assert set(handled) | set(left) == {f"{s}:{number}" for s in sources for number in self.accepted[s]}
            assert inspect(self.uri)[receiver]["pending"] == len(queue.pending)

    def teardown(self) -> None:
        """Everything that was accepted can still be handled, once."""
        if not hasattr(self, "runner"):
            return
        for receiver, inbox in self.inboxes.items():
            for _ in range(200):
                self.runner.run(self.flow.revive(receiver))
                delivery = self.runner.run(self.flow.pull(receiver))
                if delivery is None:
                    self.clock.now += 10
                else:
                    self.handle(receiver, delivery, set())
                    self.runner.run(self.receipt(self.flow, receiver, Receipt(delivery.id)))
                self.runner.run(self.flow.close())
                if not len(self.flow._state.queues[receiver]):
                    break
            sources = [source for source, (_, receivers) in ROUTES.items() if receiver in receivers]
            expected = sorted(f"{source}:{number}" for source in sources for number in self.accepted[source])
            assert sorted(effect.decode() for _, effect in inbox.effects()) == expected
        self.runner.close()


TestFlowMachine = FlowMachine.TestCase
TestFlowMachine.settings = hypothesis_settings(max_examples=25, stateful_step_count=40, deadline=None)
