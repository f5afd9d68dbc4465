"""The journal and the lease against models, while the process or the machine dies between any two storage operations.

A dying process leaves an operation undone, or done and unanswered. A dying machine may also leave an object that was
being created with only a part of its bytes, and stops all processes on it. The bytes are real ones, on a local disk.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from phases import storage
from phases.errors import BusyError
from recovery.commits import FencedError
from recovery.journal import LOSS, Journal
from recovery.lease import EXPIRY_SECONDS, Lease

OPERATIONS = ("create", "write_bytes", "remove", "move", "sync", "names", "read_bytes")
FAST_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Died(BaseException):
    """What runs nothing but `finally`."""


@contextmanager
def dying(operations: int, how: str) -> Iterator[None]:
    """Die in the storage operation after so many: "before" it is done, "after" it, or in the middle of a "torn" one."""
    left = [operations]

    def mortal(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operate(uri: str, *arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                return original(uri, *arguments, **options)
            if how == "torn" and name == "create" and options.get("checked"):
                original(uri, arguments[0][: len(arguments[0]) // 2], **options)
            elif how == "after":
                original(uri, *arguments, **options)
            raise Died

        return operate

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(storage, name, mortal(name, getattr(storage, name)))
        yield


def survives(act: Callable[[], object], operations: int, how: str) -> bool:
    """Do something with a storage that may die on the way; say whether it was done."""
    try:
        with dying(operations, how):
            act()
    except Died:
        return False
    return True


class OnDisk(RuleBasedStateMachine):
    """A machine with a run directory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.run = tempfile.mkdtemp(prefix="forge-crashes-", dir=FAST_DISK)

    def teardown(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)


WAYS = st.sampled_from(["before", "after", "torn"])
MOMENTS = st.integers(0, 6)


class JournalMachine(OnDisk):
    """Writers of one epoch share the journal, older ones are fenced; what was acknowledged is there, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch, self.count = 0, 0
        self.writers = list[Journal]()
        self.stale = list[Journal]()
        self.certain = list[int]()  # tokens in the order in which they were acknowledged
        self.possible = set[int]()  # of those who died without an answer
        self.has_begun = False  # whether the newest epoch has an event
        self.losses = 0

    @rule(moment=MOMENTS | st.none(), how=WAYS)
    def take_over(self, moment: int | None, how: str) -> None:
        """Start as a driver does: recover, then say so."""
        self.stale += self.writers
        self.epoch += 1
        self.writers, self.has_begun = [], False
        writer = Journal(self.run, self.epoch)

        def begin() -> None:
            self.losses += bool(writer.recover())
            writer.append("started", token=-self.epoch)
            self.writers, self.has_begun = [writer], True
            self.certain.append(-self.epoch)

        self.possible.add(-self.epoch)
        if moment is None:
            begin()
        elif not survives(begin, moment, how):
            self.die(how)

    @precondition(lambda self: self.writers)
    @rule()
    def join(self) -> None:
        self.writers.append(Journal(self.run, self.epoch))

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), count=st.integers(1, 3), noted=st.booleans())
    def write(self, data: st.DataObject, count: int, noted: bool) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        tokens = self.put(writer, count, noted)
        self.certain += tokens

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), count=st.integers(1, 3), moment=MOMENTS, how=WAYS)
    def write_and_die(self, data: st.DataObject, count: int, moment: int, how: str) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        self.possible |= set(range(self.count + 1, self.count + count + 1))
        if survives(lambda: self.put(writer, count, noted=False), moment, how):
            self.certain += range(self.count - count + 1, self.count + 1)
        else:
            self.writers.remove(writer)
            self.die(how)

    @precondition(lambda self: self.stale and self.has_begun)
    @rule(data=st.data())
    def write_though_taken_over(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(self.stale))
        with pytest.raises(FencedError):
            self.put(writer, 1, noted=False)

    @precondition(lambda self: not self.writers and not self.end_is_damaged())
    @rule(objects=st.integers(1, 3), how=st.sampled_from(["flip", "cut"]), share=st.floats(0, 0.99))
    def damage_the_end(self, objects: int, how: str, share: float) -> None:
        """The disk loses what it had acknowledged: the model forgets what was in the last objects."""
        lost = {event.data.get("token") for event in Journal(self.run).read()}
        for file in sorted(Path(self.run, "journal").glob("*.json"))[-objects:]:
            content = bytearray(file.read_bytes())
            place = max(15, int(share * len(content)))  # behind the version, which is refused and not recovered
            if how == "flip" and place < len(content):
                content[place] ^= 1
            file.write_bytes(content if how == "flip" else content[:place])
        lost -= {event.data.get("token") for event in Journal(self.run).read()}
        self.certain = [token for token in self.certain if token not in lost]
        self.possible -= {token for token in lost if token is not None}
        self.die("torn")

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        events = Journal(self.run).read()
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        tokens = [event.data["token"] for event in events if event.kind != LOSS]
        assert len(set(tokens)) == len(tokens)
        assert [token for token in tokens if token in self.certain] == self.certain
        assert set(tokens) - set(self.certain) <= self.possible

    @invariant()
    def every_loss_is_told(self) -> None:
        if self.writers:
            told = [name for event in Journal(self.run).read(LOSS) for name in event.data["files"]]
            names = {file.name for file in Path(self.run, "journal").iterdir()}
            assert {name for name in names if "damaged" in name} <= set(told)
            assert not self.end_is_damaged()

    def put(self, writer: Journal, count: int, noted: bool) -> list[int]:
        tokens = list(range(self.count + 1, self.count + count + 1))
        self.count += count
        if noted:
            for token in tokens:
                writer.note("x", token=token)
            writer.flush()
        else:
            writer.append_many([("x", {"token": token}) for token in tokens])
        return tokens

    def die(self, how: str) -> None:
        """A process that dies leaves the others; with a machine, all are gone."""
        if how == "torn":
            self.writers, self.stale = [], []

    def end_is_damaged(self) -> bool:
        return Journal(self.run).scan()[1] is not None


class LeaseMachine(OnDisk):
    """Processes on hosts of their own take, keep, lose and give back the lease, and write under its epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.processes = 1e9, 0
        self.holder: Lease | None = None
        self.heard = 0.0  # when somebody was last told that the holder lives
        self.past = list[Lease]()
        self.epochs = list[int]()

    def process(self) -> Lease:
        self.processes += 1
        owner = {"host": f"host {self.processes}", "pid": 1, "started": "1"}
        return Lease(self.run, clock=lambda: self.now, owner=owner)

    @property
    def expired(self) -> bool:
        return self.now - self.heard > EXPIRY_SECONDS

    @rule()
    def take(self) -> None:
        lease = self.process()
        if self.holder is not None and not self.expired:
            with pytest.raises(BusyError):
                lease.take()
            return
        lease.take()
        self.taken(lease)

    @rule(moment=MOMENTS, how=st.sampled_from(["before", "after"]))
    def take_and_die(self, moment: int, how: str) -> None:
        """Whoever dies while it takes the lease keeps others out until it expires, at most."""
        lease = self.process()
        if self.holder is not None and not self.expired:
            return
        if survives(lease.take, moment, how):
            self.taken(lease)
            return
        if self.holder is not None:
            self.past.append(self.holder)
        self.holder = None
        self.now += EXPIRY_SECONDS + 1
        lease = self.process()
        lease.take()
        self.taken(lease)

    @precondition(lambda self: self.holder)
    @rule(seconds=st.sampled_from([1.0, EXPIRY_SECONDS / 2, EXPIRY_SECONDS, 2 * EXPIRY_SECONDS]))
    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.holder)
    @rule(method=st.sampled_from(["renew", "check"]))
    def keep(self, method: str) -> None:
        """Also a late holder keeps it, where nobody has taken over."""
        assert self.holder is not None
        late = self.expired
        getattr(self.holder, method)()
        if method == "renew" or late:
            self.heard = self.now

    @precondition(lambda self: self.holder)
    @rule(moment=st.integers(0, 2), how=st.sampled_from(["before", "after"]))
    def renew_and_die(self, moment: int, how: str) -> None:
        assert self.holder is not None
        if survives(self.holder.renew, moment, how) or (moment, how) == (1, "after"):  # 0 looks who has it, 1 writes
            self.heard = self.now

    @precondition(lambda self: self.holder)
    @rule()
    def advance(self) -> None:
        assert self.holder is not None
        old, before = Journal(self.run, self.holder.epoch), self.holder.epoch
        epoch = self.holder.advance()
        assert epoch > before
        self.epochs.append(epoch)
        self.heard = self.now
        Journal(self.run, epoch).append("advanced")
        with pytest.raises(FencedError):
            old.append("late")

    @precondition(lambda self: self.holder)
    @rule()
    def release(self) -> None:
        assert self.holder is not None
        self.holder.release()
        self.holder, self.heard = None, -1e9

    @precondition(lambda self: self.past and self.holder)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        """Whoever was superseded is told so, by the lease and by the journal, and harms nobody."""
        lease = data.draw(st.sampled_from(self.past))
        with pytest.raises(FencedError):
            Journal(self.run, lease.epoch).append("late")
        with pytest.raises(FencedError):
            lease.renew()
        with pytest.raises(FencedError):
            lease.check()
        lease.release()

    @invariant()
    def epochs_grow_and_the_holder_writes(self) -> None:
        assert self.epochs == sorted(set(self.epochs))
        if self.holder is not None:
            Journal(self.run, self.holder.epoch).append("works")

    def taken(self, lease: Lease) -> None:
        if self.holder is not None:
            self.past.append(self.holder)
        self.holder, self.heard = lease, self.now
        self.epochs.append(lease.epoch)


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
