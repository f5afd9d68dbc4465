"""The newest good checkpoint wins, whatever happened to the others."""

import errno
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phases import storage
from recovery.checkpoints import Checkpoints


@pytest.fixture(params=["", "file://", "memory://"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory://" else f"{request.param}{tmp_path}"


def step_of(checkpoints: Checkpoints) -> int | None:
    newest = checkpoints.newest()
    return newest.step if newest else None


def test_the_newest_is_found_and_old_ones_go(uri: str) -> None:
    checkpoints = Checkpoints(uri, keep=2)
    assert checkpoints.newest() is None
    for step in (1, 2, 30):
        checkpoints.save(step, {"a": bytes([step]), "b": b"x"}, note=step)
    newest = checkpoints.newest()
    assert newest is not None
    assert (newest.step, newest.files, newest.meta) == (30, {"a": bytes([30]), "b": b"x"}, {"note": 30})
    assert len(storage.names(uri)) == 2
    checkpoints.clear()
    assert checkpoints.newest() is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "torn manifest", "other manifest"])
def test_a_damaged_one_is_passed_over_and_told(uri: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    told = list[str]()
    checkpoints = Checkpoints(uri, on_damage=told.append)
    checkpoints.save(1, {"a": b"good"})
    checkpoints.save(2, {"a": b"newer"})
    path = storage.join(uri, "0000000002", "manifest.json" if "manifest" in damage else "a")
    match damage:
        case "remove" | "manifest":
            storage.remove(path)
        case "flip":
            storage.write_bytes(path, b"newes")
        case "other manifest":
            storage.write_bytes(path, b"[1]")
        case _:
            storage.write_bytes(path, storage.read_bytes(path)[:3])
    assert step_of(checkpoints) == 1
    assert "0000000002" in caplog.text
    assert len(told) == 1
    assert path in told[0]


def test_retention_is_by_count_and_age_and_spares_the_only_good_one(uri: str) -> None:
    now = [0.0]
    checkpoints = Checkpoints(uri, keep=3, max_age=10, clock=lambda: now[0])
    for step in range(1, 6):
        now[0] = float(step)
        checkpoints.save(step, {"a": b"x"})
    assert storage.names(uri) == ["0000000003", "0000000004", "0000000005"]
    now[0] = 14.5
    checkpoints.save(6, {"a": b"x"})
    assert storage.names(uri) == ["0000000005", "0000000006"]
    now[0] = 1000.0
    assert step_of(checkpoints) == 6
    checkpoints.save(7, {"a": b"x"})
    assert storage.names(uri) == ["0000000007"]


def test_damaged_ones_do_not_push_good_ones_out(uri: str) -> None:
    for step in (10, 20, 30):
        Checkpoints(uri, keep=3).save(step, {"a": b"x"})
    for step in (20, 30):
        storage.write_bytes(storage.join(uri, f"{step:010d}", "a"), b"y")
    checkpoints = Checkpoints(uri, keep=1)  # the work goes on from 10
    assert step_of(checkpoints) == 10
    Checkpoints(uri, keep=2).save(15, {"a": b"x"})  # as one does that has not looked
    assert storage.names(uri) == ["0000000010", "0000000015"]
    assert step_of(Checkpoints(uri)) == 15


def test_a_step_that_is_saved_again_replaces_the_old_one_only_when_it_is_whole(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(uri, keep=1)
    checkpoints.save(5, {"a": b"first", "b": b"first"})
    with monkeypatch.context() as patch:
        fill_the_disk_after(patch, 1)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(5, {"a": b"second", "b": b"second"})
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.files["b"] == b"first"
    for content in (b"third", b"fourth"):
        checkpoints.save(5, {"a": content, "b": content})
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.files["a"] == b"fourth"
    assert len(storage.names(uri)) == 1


def fill_the_disk_after(patch: pytest.MonkeyPatch, writes: int) -> None:
    left, write = [writes], storage.write_bytes

    def limited(uri: str, data: bytes) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        write(uri, data)

    patch.setattr(storage, "write_bytes", limited)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_full_disk_leaves_the_one_before_and_nothing_half(
    uri: str, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    checkpoints = Checkpoints(uri)
    checkpoints.save(1, {"a": b"1", "b": b"1"})
    with monkeypatch.context() as patch:
        fill_the_disk_after(patch, writes)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(2, {"a": b"2", "b": b"2"})
    assert storage.names(uri) == ["0000000001"]
    assert step_of(checkpoints) == 1
    checkpoints.save(2, {"a": b"2", "b": b"2"})
    assert step_of(checkpoints) == 2


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file-size limit is as real as a full disk, and needs no privileges."""
    script = """
import resource, signal, sys
from recovery.checkpoints import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"a": b"1" * 1000})
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    checkpoints.save(2, {"a": b"2" * 1000, "b": b"2" * 10000})
except OSError as error:
    print(error.errno, checkpoints.newest().step)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG), "1"]
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["0000000001", "a", "manifest.json"]


def test_a_disk_that_cannot_read_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, read = Checkpoints(str(tmp_path)), storage.read_bytes
    for step in (1, 2):
        checkpoints.save(step, {"a": b"x"})

    def broken(code: int) -> Callable[[str], bytes]:
        def read_bytes(uri: str) -> bytes:
            if uri.endswith("0000000002/a"):
                raise OSError(code, os.strerror(code))
            return read(uri)

        return read_bytes

    monkeypatch.setattr(storage, "read_bytes", broken(errno.EIO))
    assert step_of(checkpoints) == 1
    monkeypatch.setattr(storage, "read_bytes", broken(errno.ETIMEDOUT))
    with pytest.raises(OSError, match="timed out"):  # a network that is slow says nothing about the checkpoint
        checkpoints.newest()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_damaged_the_newest_whole_one_is_returned(data: st.DataObject) -> None:
    uri = f"memory://{uuid.uuid4().hex}"
    checkpoints = Checkpoints(uri, keep=4, clock=lambda: 0.0)
    for step in range(4):
        checkpoints.save(step, {"a": b"content %d" % step, "b": bytes(step)})
    whole = set(range(4))
    for step in data.draw(st.sets(st.integers(0, 3))):
        path = storage.join(uri, f"{step:010d}", data.draw(st.sampled_from(["a", "manifest.json"])))
        content = bytearray(storage.read_bytes(path))
        place = data.draw(st.integers(0, len(content) - 3))  # of JSON, the last byte is white space
        if data.draw(st.booleans()) or path.endswith("json"):
            storage.write_bytes(path, bytes(content[:place]))
        else:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
            storage.write_bytes(path, bytes(content))
        whole.discard(step)
    assert step_of(checkpoints) == max(whole, default=None)
