"""Storage behaves alike on a disk and in memory."""

import json
import uuid
from pathlib import Path

import pytest

from phases import storage
from phases.errors import ArtifactError


@pytest.fixture(params=["file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}" if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def test_what_is_written_is_read(root: str) -> None:
    uri = storage.join(root, "a", "b.json")
    storage.write_json(uri, {"x": [1, 2.5, None]})
    assert storage.read_json(uri) == {"x": [1, 2.5, None]}
    assert storage.names(storage.join(root, "a")) == ["b.json"]


def test_create_succeeds_once(root: str) -> None:
    uri = storage.join(root, "commit")
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert storage.names(root) == ["commit"]


def test_write_replaces(root: str) -> None:
    uri = storage.join(root, "x")
    storage.write_bytes(uri, b"old and long")
    storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"


def test_append_keeps_the_lines_before(root: str) -> None:
    uri = storage.join(root, "metrics.jsonl")
    for number in range(3):
        storage.append_line(uri, json.dumps(number))
    assert storage.read_bytes(uri) == b"0\n1\n2\n"


def test_missing_files_are_named(root: str) -> None:
    uri = storage.join(root, "nothing")
    for read in (storage.read_bytes, storage.read_json, storage.sha256):
        with pytest.raises(ArtifactError, match="nothing"):
            read(uri)
    assert not storage.exists(uri)
    assert storage.names(uri) == []
    storage.remove(uri)


def test_broken_json_is_named(root: str) -> None:
    uri = storage.join(root, "torn.json")
    storage.write_bytes(uri, b'{"half": ')
    with pytest.raises(ArtifactError, match=r"torn\.json"):
        storage.read_json(uri)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phases.storage.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_bytes(uri, b"new")
    assert Path(uri).read_bytes() == b"old"
    assert storage.names(str(tmp_path)) == ["x"]


def test_folders_go_up_and_come_back(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "x").write_bytes(b"1")
    uri = storage.join(root, "folder")
    storage.upload_folder(source, uri)
    assert (storage.local_folder(uri) / "deep" / "x").read_bytes() == b"1"
    with pytest.raises(ArtifactError, match="no such folder"):
        storage.local_folder(storage.join(root, "none"))
