"""The newest good checkpoint wins, whatever happened to the others."""

import uuid
from pathlib import Path

import pytest

from phases import storage
from recovery.checkpoints import Checkpoints


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "file" else f"memory://{uuid.uuid4().hex}"


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


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "torn manifest"])
def test_a_damaged_one_is_passed_over_and_named(uri: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(uri)
    checkpoints.save(1, {"a": b"good"})
    checkpoints.save(2, {"a": b"newer"})
    name = "manifest.json" if "manifest" in damage else "a"
    path = storage.join(uri, "0000000002", name)
    if damage in ("remove", "manifest"):
        storage.remove(path)
    elif damage == "flip":
        storage.write_bytes(path, b"newes")
    else:
        storage.write_bytes(path, storage.read_bytes(path)[:3])
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 1
    assert "0000000002" in caplog.text
