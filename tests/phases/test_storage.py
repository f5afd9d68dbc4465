"""Storage behaves alike on a disk and in memory."""

import json
import os
import threading
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


@pytest.mark.parametrize("operation", ["write_bytes", "create"])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    uri = str(tmp_path / "x")
    if operation == "write_bytes":
        storage.write_bytes(uri, b"old")
    before = list(os.scandir(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phases.storage.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        getattr(storage, operation)(uri, b"new")
    assert [entry.name for entry in os.scandir(tmp_path)] == [entry.name for entry in before]
    assert not before or Path(uri).read_bytes() == b"old"


FILE, FOLDER = "file", "folder"


@pytest.mark.parametrize(
    ("filesystem", "options", "steps"),
    [
        ("ext4", {"checked": True}, ["link", FILE]),
        ("ext4", {}, [FILE, "link", FOLDER]),
        ("nfs4", {"checked": True}, [FILE, "link", FOLDER, FOLDER, FOLDER]),  # with the folders that it made
        ("nfs4", {}, [FILE, "link", FOLDER, FOLDER, FOLDER]),
        ("nfs4", {"durable": False}, ["link"]),
    ],
)
@pytest.mark.parametrize("unnamed", [True, False])
def test_what_is_created_is_flushed_in_the_order_that_its_filesystem_needs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    filesystem: str,
    options: dict[str, bool],
    steps: list[str],
    unnamed: bool,
) -> None:
    done, fsync, link = list[str](), os.fsync, os.link

    def note_fsync(descriptor: int) -> None:
        done.append(FOLDER if os.path.isdir(f"/proc/self/fd/{descriptor}") else FILE)
        fsync(descriptor)

    def note_link(*arguments: str, **others: object) -> None:
        done.append("link")
        link(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr("phases.storage._filesystem", lambda _: filesystem)
    monkeypatch.setattr("phases.storage.os.fsync", note_fsync)
    monkeypatch.setattr("phases.storage.os.link", note_link)
    if not unnamed:
        monkeypatch.setattr("phases.storage._UNNAMED", 0)
    uri = str(tmp_path / "a" / "b" / "x")
    assert storage.create(uri, b"content", **options)
    assert done == steps
    assert not storage.create(uri, b"other", **options)
    assert os.listdir(tmp_path / "a" / "b") == ["x"]
    assert Path(uri).read_bytes() == b"content"


def test_of_many_that_create_at_once_one_does(tmp_path: Path) -> None:
    created = list[bytes]()

    def compete(content: bytes) -> None:
        if storage.create(str(tmp_path / "deep" / "slot"), content, checked=True):
            created.append(content)

    threads = [threading.Thread(target=compete, args=(b"%d" % number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / "deep" / "slot").read_bytes()] == created


def test_what_many_append_is_whole_and_in_one_order_for_all(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "log")
    files = [storage.AppendedFile(uri) for _ in range(4)]
    assert files[0].read_from(0) == b""

    def write(file: storage.AppendedFile, name: bytes) -> None:
        for number in range(200):
            file.append(b"%s:%d\n" % (name, number) * 20, durable=number % 100 == 0)

    threads = [threading.Thread(target=write, args=(file, b"%d" % who)) for who, file in enumerate(files)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = files[1].read_from(0)
    assert {file.read_from(0) for file in files} == {content}
    lines = content.splitlines()
    assert len(lines) == 4 * 200 * 20
    for who in range(4):
        mine = [line for line in lines if line.startswith(b"%d:" % who)]
        assert mine == [b"%d:%d" % (who, number) for number in range(200) for _ in range(20)]
    assert files[2].read_from(len(content) - 3) == content[-3:]
    assert all(len(set(lines[start : start + 20])) == 1 for start in range(0, len(lines), 20))


def test_a_disk_that_takes_only_a_part_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr("phases.storage.os.write", lambda descriptor, data: write(descriptor, data[:3]))
    with pytest.raises(OSError, match="No space left"):
        storage.AppendedFile(str(tmp_path / "log")).append(b"12345")


def test_a_file_is_moved(root: str) -> None:
    storage.write_bytes(storage.join(root, "a"), b"1")
    storage.sync(storage.join(root, "a"))
    storage.move(storage.join(root, "a"), storage.join(root, "b"))
    assert storage.names(root) == ["b"]
    assert storage.read_bytes(storage.join(root, "b")) == b"1"


def test_folders_go_up_and_come_back(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "x").write_bytes(b"1")
    uri = storage.join(root, "folder")
    storage.upload_folder(source, uri)
    assert (storage.local_folder(uri) / "deep" / "x").read_bytes() == b"1"
    with pytest.raises(ArtifactError, match="no such folder"):
        storage.local_folder(storage.join(root, "none"))
