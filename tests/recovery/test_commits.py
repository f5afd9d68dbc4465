"""The store, and not the writer, decides whose commit counts."""

import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from recovery.commits import Commits, FencedError
from recovery.inputs import input_hash


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_an_attempt_that_was_given_up_cannot_commit(scheme: str, tmp_path: Path) -> None:
    run = str(tmp_path) if scheme == "file" else f"memory://{uuid.uuid4().hex}"
    stale, current = Commits(run), Commits(run)
    first = stale.begin("cognate/train warm_up")
    second = current.begin("cognate/train warm_up")
    assert (first, second) == (1, 2)
    with pytest.raises(FencedError, match="epoch 1 has been given up"):
        stale.commit("cognate/train warm_up", first, "old")
    current.commit("cognate/train warm_up", second, {"loss": 1.5})
    found = current.committed("cognate/train warm_up")
    assert found is not None
    assert (found["epoch"], found["result"]) == (2, {"loss": 1.5})
    with pytest.raises(FencedError):
        current.commit("cognate/train warm_up", second, "twice")


def result(commits: Commits, inputs: str = "") -> object:
    found = commits.committed("s", inputs)
    return found and found["result"]


def test_what_was_committed_before_the_next_attempt_began_stays(tmp_path: Path) -> None:
    commits = Commits(str(tmp_path))
    commits.commit("s", commits.begin("s"), "first")
    commits.begin("s")
    assert result(commits) == "first"
    assert commits.committed("other") is None


def test_of_many_that_begin_at_once_each_gets_an_epoch_of_its_own(tmp_path: Path) -> None:
    epochs = list[int]()
    threads = [threading.Thread(target=lambda: epochs.append(Commits(str(tmp_path)).begin("s"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(epochs) == list(range(1, 9))
    accepted = []
    for epoch in sorted(epochs):
        try:
            Commits(str(tmp_path)).commit("s", epoch, epoch)
            accepted.append(epoch)
        except FencedError:
            continue
    assert accepted == [8]


def test_a_changed_task_is_not_taken_for_the_committed_one(tmp_path: Path) -> None:
    commits = Commits(str(tmp_path))
    old, new = input_hash({"steps": 10}), input_hash({"steps": 20})
    commits.commit("s", commits.begin("s"), "of 10", old)
    assert result(commits, old) == "of 10"
    assert result(commits, new) is None
    stale = commits.begin("s")
    commits.commit("s", commits.begin("s"), "of 20", new)
    with pytest.raises(FencedError):  # a change of the inputs lets no attempt escape that was given up
        commits.commit("s", stale, "late", old)
    assert (result(commits, old), result(commits, new)) == ("of 10", "of 20")


@pytest.mark.parametrize("damage", [b"", b'{"step": "s", "epo', b"[]", b"\xff"])
def test_a_damaged_commit_does_not_count_and_cannot_be_filled_again(tmp_path: Path, damage: bytes) -> None:
    commits = Commits(str(tmp_path))
    commits.commit("s", commits.begin("s"), {10: "a", 9: "b"})
    (slot,) = tmp_path.glob("commits/*.json")
    assert result(commits) == {"10": "a", "9": "b"}
    slot.write_bytes(slot.read_bytes().replace(b'"a"', b'"A"') if damage == b"[]" else damage)
    assert result(commits) is None
    with pytest.raises(FencedError):
        commits.commit("s", 1, "again")
    commits.commit("s", commits.begin("s"), "anew")
    assert result(commits) == "anew"


class Attempts(RuleBasedStateMachine):
    """Any order of beginnings and commits: only the newest attempt commits, and only once."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = Commits(f"memory://{uuid.uuid4().hex}")
        self.newest = 0
        self.done: set[int] = set()

    @rule()
    def begin(self) -> None:
        self.newest = self.commits.begin("s")

    @rule(back=st.integers(0, 3))
    def commit(self, back: int) -> None:
        epoch = self.newest - back
        if epoch < 1:
            return
        try:
            self.commits.commit("s", epoch, epoch)
            assert back == 0
            assert epoch not in self.done
            self.done.add(epoch)
        except FencedError:
            assert back > 0 or epoch in self.done

    @invariant()
    def the_first_commit_is_what_is_found(self) -> None:
        assert result(self.commits) == min(self.done, default=None)


Attempts.TestCase.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)
TestAttempts = Attempts.TestCase
