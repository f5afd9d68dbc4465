"""Files by URI: the few operations that a run needs, on any fsspec filesystem.

A write goes to a temporary name and is then moved into place, so that a reader never sees half a file. A plain path is
a local file. `create` is the one conditional write: it fails if the object exists, which is what commits rely on.
"""

import hashlib
import json
import os
import posixpath
import uuid
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from phases.errors import ArtifactError


def _resolve(uri: str) -> tuple[AbstractFileSystem, str]:
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


def join(uri: str, *parts: str) -> str:
    """Append path `parts` to `uri`."""
    return posixpath.join(uri, *parts)


def exists(uri: str) -> bool:
    """Say whether a file or directory is there."""
    fs, path = _resolve(uri)
    return bool(fs.exists(path))


def is_local(uri: str) -> bool:
    """Say whether `uri` is on this machine's disk."""
    return isinstance(_resolve(uri)[0], LocalFileSystem)


def names(uri: str) -> list[str]:
    """Return the sorted names in a directory, temporary ones left out; empty where there is no directory."""
    fs, path = _resolve(uri)
    if not fs.isdir(path):
        return []
    fs.invalidate_cache(path)
    entries = (posixpath.basename(str(entry).rstrip("/")) for entry in fs.ls(path, detail=False))
    return sorted(name for name in entries if not name.startswith(".tmp-"))


def read_bytes(uri: str) -> bytes:
    """Return a file's content. Raises `ArtifactError` naming the file where it is missing."""
    fs, path = _resolve(uri)
    try:
        return bytes(fs.cat_file(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ArtifactError(f"{uri}: no such file") from error


def write_bytes(uri: str, data: bytes) -> None:
    """Put `data` at `uri` atomically: flushed under a temporary name, then renamed."""
    fs, path = _resolve(uri)
    temporary = _temporary_beside(fs, path)
    if isinstance(fs, LocalFileSystem):
        _write_and_sync(temporary, data)
        os.replace(temporary, path)
        _sync_directory(posixpath.dirname(path))
    else:
        fs.pipe_file(temporary, data)
        fs.mv(temporary, path)


def create(uri: str, data: bytes) -> bool:
    """Put `data` at `uri` only if nothing is there; return whether this call created it."""
    fs, path = _resolve(uri)
    if isinstance(fs, LocalFileSystem):
        temporary = _temporary_beside(fs, path)
        _write_and_sync(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        _sync_directory(posixpath.dirname(path))
        return True
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def remove(uri: str) -> None:
    """Delete a file or directory; silent where it is already gone."""
    fs, path = _resolve(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def read_json(uri: str) -> Any:
    """Return a parsed JSON file. Raises `ArtifactError` naming the file where it is missing or not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise ArtifactError(f"{uri}: not valid JSON ({error})") from error


def write_json(uri: str, value: Any) -> None:
    """Put `value` as indented JSON at `uri`, atomically."""
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def append_line(uri: str, line: str) -> None:
    """Append a line to a text file; where the filesystem cannot append, rewrite it atomically."""
    fs, path = _resolve(uri)
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        return
    before = read_bytes(uri) if fs.exists(path) else b""
    write_bytes(uri, before + line.encode() + b"\n")


def sha256(uri: str) -> str:
    """Return the hex SHA-256 of a file, read in blocks of 1 MiB."""
    fs, path = _resolve(uri)
    digest = hashlib.sha256()
    try:
        with fs.open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError as error:
        raise ArtifactError(f"{uri}: no such file") from error
    return digest.hexdigest()


def local_folder(uri: str) -> Path:
    """Return a local path to a folder that no longer changes; a remote one is fetched once per machine."""
    fs, path = _resolve(uri)
    if not fs.isdir(path):
        raise ArtifactError(f"{uri}: no such folder")
    if isinstance(fs, LocalFileSystem):
        return Path(path)
    target = Path(gettempdir()) / "agent-forge" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent) as folder:
            fs.get(path, f"{folder}/copy", recursive=True)
            with suppress(OSError):  # another process of this machine was faster
                os.replace(f"{folder}/copy", target)
    return target


def upload_folder(folder: Path, uri: str) -> None:
    """Copy the files of a local folder to `uri`; nothing to do where that is the folder itself."""
    fs, path = _resolve(uri)
    if isinstance(fs, LocalFileSystem) and Path(path).resolve() == folder.resolve():
        return
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            fs.makedirs(posixpath.dirname(f"{path}/{file.relative_to(folder)}"), exist_ok=True)
            fs.put_file(str(file), f"{path}/{file.relative_to(folder)}")


def _temporary_beside(fs: AbstractFileSystem, path: str) -> str:
    folder, name = posixpath.split(path)
    fs.makedirs(folder, exist_ok=True)
    return posixpath.join(folder, f".tmp-{name}-{uuid.uuid4().hex[:8]}")


def _write_and_sync(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: str) -> None:
    descriptor = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
