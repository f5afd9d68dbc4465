"""One live process holds a run directory; a dead one does not, and a frozen one is fenced off."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from phases import storage
from phases.errors import BusyError
from recovery import lease as module
from recovery.commits import FencedError
from recovery.journal import Journal
from recovery.lease import EXPIRY_SECONDS, Lease
from support.clock import Clock

HOLD = """
import sys, time
from recovery.lease import Lease
with Lease(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def elsewhere(name: str) -> dict[str, Any]:
    return {"host": name, "pid": 1, "started": "1"}


@pytest.fixture(params=["file", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def test_a_held_lease_is_refused_and_a_released_one_is_not(run: str) -> None:
    with Lease(run) as first, pytest.raises(BusyError, match="is working in this run directory"):
        Lease(run).take()
    with Lease(run) as second:
        assert second.epoch > first.epoch


def test_the_lease_of_a_killed_process_is_free(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=f"process {holder.pid}"):
        Lease(str(tmp_path)).take()
    holder.kill()
    holder.wait()
    with Lease(str(tmp_path)) as lease:
        assert lease.epoch == 2


def test_another_host_is_believed_until_its_lease_expires(run: str) -> None:
    clock = Clock(1e9)
    holder = Lease(run, clock=clock, owner=elsewhere("a"))
    holder.take()
    clock.now += EXPIRY_SECONDS - 1
    with pytest.raises(BusyError, match="process 1 on a"):
        Lease(run, clock=clock).take()
    holder.renew()
    clock.now += EXPIRY_SECONDS
    with pytest.raises(BusyError, match="process 1 on a"):
        Lease(run, clock=clock).take()
    clock.now += 1
    successor = Lease(run, clock=clock)
    successor.take()
    assert successor.epoch == 2
    with pytest.raises(FencedError, match="another has taken over"):
        holder.check()
    holder.release()
    successor.check()
    with pytest.raises(BusyError):
        Lease(run, clock=clock).take()


def test_who_slept_through_the_expiry_goes_on_where_nobody_has_taken_over(run: str) -> None:
    clock = Clock(1e9)
    holder = Lease(run, clock=clock, owner=elsewhere("a"))
    holder.take()
    clock.now += 10 * EXPIRY_SECONDS
    holder.check()
    with pytest.raises(BusyError):
        Lease(run, clock=clock).take()


def test_who_cannot_renew_in_time_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1e9)
    holder = Lease(str(tmp_path), clock=clock)
    holder.take()

    def unreachable(*_: object) -> None:
        raise OSError("the store does not answer")

    monkeypatch.setattr(storage, "write_json", unreachable)
    clock.now += EXPIRY_SECONDS
    holder.check()
    clock.now += 1
    with pytest.raises(FencedError, match="could not be renewed"):
        holder.check()


def test_a_new_epoch_fences_off_the_one_before_and_keeps_the_lease(run: str) -> None:
    with Lease(run) as lease:
        old, before = Journal(run, lease.epoch), lease.epoch
        old.append("old")
        new = Journal(run, lease.advance())
        new.append("new")
        lease.renew()
        lease.check()
        assert lease.epoch == before + 1
        with pytest.raises(FencedError):
            old.append("late")
        with pytest.raises(BusyError):
            Lease(run).take()
    assert [event.kind for event in Journal(run).read()] == ["old", "new"]


def test_epochs_grow_even_where_the_folder_was_removed(tmp_path: Path) -> None:
    for _ in range(3):
        with Lease(str(tmp_path)) as lease:
            Journal(str(tmp_path), lease.epoch).append("a")
    storage.remove(str(tmp_path / "lease"))
    with Lease(str(tmp_path)) as lease:
        assert lease.epoch == 4
        Journal(str(tmp_path), lease.epoch).append("b")


def test_a_taker_that_was_late_does_not_get_a_number_that_is_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, create = Lease(str(tmp_path)), storage.create

    def paused(uri: str, data: bytes) -> bool:  # meanwhile others come and go, and one stays
        monkeypatch.setattr(storage, "create", create)
        for _ in range(3):
            with Lease(str(tmp_path)):
                pass
        Lease(str(tmp_path)).take()
        return create(uri, data)

    monkeypatch.setattr(storage, "create", paused)
    with pytest.raises(BusyError, match="same moment"):
        late.take()
    assert [int(name) for name in storage.names(str(tmp_path / "lease")) if name.isdigit()] == [4]


@pytest.mark.parametrize("damage", [b"", b"[1]", b"{}"])
def test_a_damaged_sign_of_life_is_none(tmp_path: Path, damage: bytes) -> None:
    Lease(str(tmp_path)).take()
    for file in (tmp_path / "lease").iterdir():
        file.write_bytes(damage)
    with Lease(str(tmp_path)) as lease:
        assert lease.epoch == 2


def compete(run: str, start: Any, answers: Any) -> None:
    start.wait()
    try:
        with Lease(run):
            answers.put("won")
            start.wait()  # until all have tried
    except BusyError:
        answers.put("refused")
        start.wait()


def test_of_processes_that_resume_at_once_exactly_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(6):
        start, answers = context.Barrier(4), context.Queue()
        arguments = (str(tmp_path / str(number // 3)), start, answers)  # fresh runs, and ones that had holders
        processes = [context.Process(target=compete, args=arguments) for _ in range(4)]
        for process in processes:
            process.start()
        assert sorted(answers.get(timeout=30) for _ in processes) == ["refused"] * 3 + ["won"]
        for process in processes:
            process.join(30)
            assert process.exitcode == 0


WORK = """
import sys, time
from recovery import lease as module
from recovery.commits import FencedError
module.EXPIRY_SECONDS, module.RENEWAL_SECONDS = 2.0, 0.2
from recovery.journal import Journal
from recovery.lease import Lease
outcomes = {}
with Lease(sys.argv[1]) as lease:
    journal = Journal(sys.argv[1], lease.epoch)
    journal.append("started", who="first")
    print("held", flush=True)
    sys.stdin.readline()
    for name, act in {"append": lambda: journal.append("late"), "check": lease.check}.items():
        try:
            act()
            print(name, "went through", flush=True)
        except FencedError:
            print(name, "fenced", flush=True)
"""


def test_a_frozen_holder_is_superseded_and_fenced_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXPIRY_SECONDS", 2.0)
    run, pipe = str(tmp_path), subprocess.PIPE
    holder = subprocess.Popen([sys.executable, "-c", WORK, run], stdin=pipe, stdout=pipe, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError):
            Lease(run).take()
        os.kill(holder.pid, signal.SIGSTOP)
        time.sleep(2.3)
        with Lease(run) as lease:
            Journal(run, lease.epoch).append("taken over", who="second")
            os.kill(holder.pid, signal.SIGCONT)
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert holder.stdout.read().splitlines() == ["append fenced", "check fenced"]
            assert holder.wait(30) == 0
            lease.check()
            Journal(run, lease.epoch).append("goes on")
            with pytest.raises(BusyError):
                Lease(run).take()
    finally:
        holder.kill()
        holder.wait()
    assert [event.kind for event in Journal(run).read()] == ["started", "taken over", "goes on"]
