"""Each message has one effect, whichever incarnation of the receiver handles it and however often."""

import uuid

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from recovery.inbox import Delivery, Inbox, Message, Receipt


def message(offset: int) -> Message:
    return Message(offset, "topic", "source", offset, 0, b"body")


def test_what_is_handled_is_not_fresh_after_a_restart() -> None:
    uri = f"memory://{uuid.uuid4().hex}"
    inbox = Inbox(uri)
    assert inbox.commit({0: b"a", 2: b"c"}) == [0, 2]
    again = Inbox(uri)
    assert [fresh.offset for fresh in again.fresh(message(offset) for offset in range(4))] == [1, 3]
    assert list(again.effects()) == [(0, b"a"), (2, b"c")]


def test_the_slower_of_two_incarnations_keeps_only_what_the_other_left() -> None:
    uri = f"memory://{uuid.uuid4().hex}"
    old, new = Inbox(uri), Inbox(uri)
    assert new.commit({0: b"new", 1: b"new"}) == [0, 1]
    assert old.commit({1: b"old", 2: b"old"}) == [2]
    assert new.commit({2: b"new"}) == []
    assert list(Inbox(uri).effects()) == [(0, b"new"), (1, b"new"), (2, b"old")]


def test_a_message_that_cannot_be_handled_is_failed_and_stays_fresh() -> None:
    inbox = Inbox(f"memory://{uuid.uuid4().hex}")

    def reciprocal(message: Message) -> bytes:
        return b"%d" % (1 // message.number)

    receipt = inbox.handle(Delivery("d", [message(offset) for offset in range(3)]), reciprocal)
    assert receipt == Receipt("d", {0: "ZeroDivisionError: integer division or modulo by zero"})
    assert list(inbox.effects()) == [(1, b"1"), (2, b"0")]
    assert inbox.fresh([message(0)]) == [message(0)]
    assert len(inbox) == 2


class InboxMachine(RuleBasedStateMachine):
    """Three incarnations commit overlapping batches and restart at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.uri = f"memory://{uuid.uuid4().hex}"
        self.inboxes = [Inbox(self.uri) for _ in range(3)]
        self.expected: dict[int, bytes] = {}

    @rule(who=st.integers(0, 2), offsets=st.sets(st.integers(0, 30), min_size=1, max_size=6))
    def commit(self, who: int, offsets: set[int]) -> None:
        name = b"%d" % who
        done = self.inboxes[who].commit(dict.fromkeys(offsets, name))
        assert set(done) == offsets - set(self.expected)
        self.expected |= dict.fromkeys(done, name)

    @rule(who=st.integers(0, 2))
    def restart(self, who: int) -> None:
        self.inboxes[who] = Inbox(self.uri)

    @invariant()
    def each_effect_is_there_once(self) -> None:
        effects = list(self.inboxes[0].effects())
        assert dict(effects) == self.expected
        assert len(effects) == len(self.expected)


TestInboxMachine = InboxMachine.TestCase
TestInboxMachine.settings = hypothesis_settings(max_examples=30, stateful_step_count=25, deadline=None)
