"""The store, and not the writer, decides whose commit counts."""

import multiprocessing
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from phases import storage
from phases.errors import ConfigError
from recovery.commits import Commits, FencedError
from recovery.inputs import input_hash


@pytest.fixture(params=["log", "slots", "memory"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "slots":
        (tmp_path / "commits").mkdir()  # as a run has that was made in another store
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path)


def test_an_attempt_that_was_given_up_cannot_commit(places: str) -> None:
    stale, current = Commits(places), Commits(places)
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


def test_what_was_committed_before_the_next_attempt_began_stays(places: str) -> None:
    commits = Commits(places)
    commits.commit("s", commits.begin("s"), "first")
    commits.begin("s")
    assert result(commits) == "first"
    assert commits.committed("other") is None


def test_of_many_that_begin_at_once_each_gets_an_epoch_of_its_own(places: str) -> None:
    epochs = list[int]()
    threads = [threading.Thread(target=lambda: epochs.append(Commits(places).begin("s"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(epochs) == list(range(1, 9))
    accepted = []
    for epoch in sorted(epochs):
        try:
            Commits(places).commit("s", epoch, epoch)
            accepted.append(epoch)
        except FencedError:
            continue
    assert accepted == [8]


def test_a_changed_task_is_not_taken_for_the_committed_one(places: str) -> None:
    commits = Commits(places)
    old, new = input_hash({"steps": 10}), input_hash({"steps": 20})
    commits.commit("s", commits.begin("s"), "of 10", old)
    assert result(commits, old) == "of 10"
    assert result(commits, new) is None
    stale = commits.begin("s")
    commits.commit("s", commits.begin("s"), "of 20", new)
    with pytest.raises(FencedError):  # a change of the inputs lets no attempt escape that was given up
        commits.commit("s", stale, "late", old)
    assert (result(commits, old), result(commits, new)) == ("of 10", "of 20")


@pytest.mark.parametrize("damage", [b"", b'0123 {"step": "s", "epo', b"[]", b"\xff"])
def test_a_damaged_commit_does_not_count_and_the_step_is_done_again(places: str, tmp_path: Path, damage: bytes) -> None:
    commits = Commits(places)
    commits.commit("s", commits.begin("s"), {10: "a", 9: "b"})
    assert result(commits) == {"10": "a", "9": "b"}
    log = tmp_path / "commits.log"
    if log.exists():
        grant, commit = filter(None, log.read_bytes().split(b"\n"))
        altered = commit.replace(b'"a"', b'"A"') if damage == b"[]" else damage
        log.write_bytes(b"\n" + grant + b"\n\n" + altered + (b"\n" if damage == b"[]" else b""))
    else:
        (slot,) = storage.names(storage.join(places, "commits"))[1:]
        storage.write_bytes(storage.join(places, "commits", slot), damage)
    assert result(Commits(places)) is None
    again = Commits(places)
    again.commit("s", again.begin("s"), "anew")
    assert result(Commits(places)) == "anew"


def test_a_commit_that_pauses_after_its_check_is_still_refused(places: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store decides, and not what a writer knew before it wrote."""
    stale, current = Commits(places), Commits(places)
    epoch = stale.begin("s")
    with monkeypatch.context() as patch:
        for place, name in ((storage.AppendedFile, "append"), (storage, "create")):
            patch.setattr(place, name, pausing(getattr(place, name), lambda: current.begin("s")))
        with pytest.raises(FencedError):
            stale.commit("s", epoch, "late")
    current.commit("s", 2, "current")
    for commits in (stale, current, Commits(places)):
        assert result(commits) == "current"


def pausing(original: Callable[..., Any], meanwhile: Callable[[], object]) -> Callable[..., Any]:
    """Return an operation that lets others act just before it, once."""
    paused = list[bool]()

    def operate(*arguments: Any, **options: Any) -> Any:
        if not paused:
            paused.append(True)
            meanwhile()
        return original(*arguments, **options)

    return operate


def test_a_step_is_one_flush(places: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commits, flushes = Commits(places), list[int]()
    commits.commit("warm up", commits.begin("warm up"), None)
    monkeypatch.setattr("phases.storage._filesystem", lambda _: "ext4")
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(f"phases.storage.os.{name}", flushes.append)
    commits.commit("s", commits.begin("s"), "x")
    assert len(flushes) == (0 if places.startswith("memory") else 1)


def test_who_did_not_grant_an_epoch_may_commit_it(places: str) -> None:
    Commits(places).commit("s", Commits(places).begin("s"), "by another")
    assert result(Commits(places)) == "by another"


def attempt(run: str, steps: int, start: Any, accepted: Any) -> None:
    commits, mine = Commits(run), []
    start.wait()
    for step in range(steps):
        epoch = commits.begin(f"s{step}")
        try:
            commits.commit(f"s{step}", epoch, os.getpid())
            mine.append((step, epoch))
        except FencedError:
            continue
    accepted.put((os.getpid(), mine))


@pytest.mark.parametrize("kind", ["log", "slots"])
def test_processes_agree_on_whose_commits_count(tmp_path: Path, kind: str) -> None:
    if kind == "slots":
        (tmp_path / "commits").mkdir()
    context, steps = multiprocessing.get_context("fork"), 30
    start, queue = context.Barrier(4), context.Queue()
    processes = [context.Process(target=attempt, args=(str(tmp_path), steps, start, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    accepted = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    commits = Commits(str(tmp_path))
    told = [(step, epoch) for _, mine in accepted for step, epoch in mine]
    assert len(set(told)) == len(told)
    for step in range(steps):
        claims = sorted((epoch, pid) for pid, mine in accepted for s, epoch in mine if s == step)
        found = commits.committed(f"s{step}")
        assert claims, "the newest attempt, at least, was accepted"
        assert found is not None
        assert (found["epoch"], found["result"]) == claims[0]


def test_a_log_is_not_used_beside_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Commits(str(tmp_path)).begin("s")
    with monkeypatch.context() as patch:
        patch.setattr("phases.storage._filesystem", lambda _: "nfs4")
        with pytest.raises(ConfigError, match="disk of another host"):
            Commits(str(tmp_path))


class Attempts(RuleBasedStateMachine):
    """Any order of beginnings and commits: only the newest attempt commits, and only once."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="forge-commits-")
        self.commits = Commits(self.place())
        self.newest = 0
        self.done: set[int] = set()

    def place(self) -> str:
        return f"memory://{uuid.uuid4().hex}"

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

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


class AttemptsInALog(Attempts):
    def place(self) -> str:
        return self.folder


AttemptsInALog.TestCase.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
TestAttemptsInALog = AttemptsInALog.TestCase
