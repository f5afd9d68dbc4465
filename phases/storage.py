"""Files by URI: the few operations that a run needs, on any fsspec filesystem.

A write goes to a temporary name and is then moved into place, so that a reader never sees half a file. A plain path is
a local file. `create` is the one conditional write: it fails if the object exists, which is what commits rely on.

When a call returns, what it wrote survives a power failure, unless it says otherwise. That costs a flush of the disk
for the bytes and one for the name; on filesystems that commit both together (ext4, xfs), one is enough for those who
can tell whether what they read is whole.
"""

import errno
import hashlib
import json
import os
import posixpath
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from phases.errors import ArtifactError

_ORDERED = ("ext4", "xfs")  # there, flushing a file also commits its names and the folders that they are in
_APPENDING = (*_ORDERED, "tmpfs")  # there, what several processes append is whole, and in one order for all
_UNNAMED = getattr(os, "O_TMPFILE", 0)
_READ_BYTES = 64 << 10
_LOCAL = LocalFileSystem()
_MODE = 0o666  # less the umask, as `open` does
_witnesses: list[Callable[[str, bytes], None]] = []


def _resolve(uri: str) -> tuple[AbstractFileSystem, str]:
    if ":" not in uri:  # a plain path, as most are; the general way takes several times as long as a small write
        return _LOCAL, os.path.abspath(os.path.expanduser(uri))
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


def join(uri: str, *parts: str) -> str:
    """Append path `parts` to `uri`."""
    return posixpath.join(uri, *parts)


def folder_name(uri: str) -> str:
    """Return the last part of a URI, as a name for people."""
    return posixpath.basename(uri.rstrip("/"))


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
    if isinstance(fs, LocalFileSystem):
        try:
            return sorted(name for name in os.listdir(path) if not name.startswith(".tmp-"))
        except (FileNotFoundError, NotADirectoryError):
            return []
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


def before_writes(witness: Callable[[str, bytes], None]) -> None:
    """Have `witness(uri, data)` called before each atomic write of this process; what it raises, the write raises."""
    if witness not in _witnesses:
        _witnesses.append(witness)


def write_bytes(uri: str, data: bytes) -> None:
    """Put `data` at `uri` atomically: flushed under a temporary name, then renamed."""
    for witness in _witnesses:
        witness(uri, data)
    fs, path = _resolve(uri)
    if isinstance(fs, LocalFileSystem):
        _write_local(path, data)
    else:
        temporary = _temporary_beside(path)
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        fs.pipe_file(temporary, data)
        fs.mv(temporary, path)


def create(uri: str, data: bytes, *, checked: bool = False, durable: bool = True) -> bool:
    """Put `data` at `uri` only if nothing is there; return whether this call created it.

    Say `checked` where readers can tell whether the content is whole, and pass over it where it is not: this may save
    a flush, and a power failure before the call returns may leave the name with less than `data`. What is not
    `durable` is there for all processes at once, and certain to survive a power failure only later.
    """
    fs, path = _resolve(uri)
    if isinstance(fs, LocalFileSystem):
        return _create_local(path, data, checked, durable)
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def appends_in_order(uri: str) -> bool:
    """Say whether what processes append to a file below `uri` is kept whole and in one order: on disks of this host."""
    fs, path = _resolve(uri)
    while isinstance(fs, LocalFileSystem) and not os.path.exists(path):
        path = posixpath.dirname(path)
    return isinstance(fs, LocalFileSystem) and _filesystem(os.stat(path).st_dev) in _APPENDING


class AppendedFile:
    """A file where `appends_in_order`, to which several processes append; it is made by the first that does."""

    def __init__(self, uri: str) -> None:
        self._path = _resolve(uri)[1]
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def append(self, data: bytes, *, durable: bool = True) -> int:
        """Append in one piece, and return where in the file it begins; durable in one flush, with all before it."""
        with self._lock:  # the position is the descriptor's, which threads share
            if self._descriptor is None:
                _make_folder(posixpath.dirname(self._path))
                self._open(os.O_CREAT)
            assert self._descriptor is not None
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
            begin = os.lseek(self._descriptor, 0, os.SEEK_CUR) - len(data)
        if durable:
            os.fdatasync(self._descriptor)
        return begin

    def read_from(self, offset: int) -> bytes:
        """Return what is behind `offset`; nothing where there is no file."""
        if self._descriptor is None:
            with suppress(FileNotFoundError):
                self._open(0)
        if self._descriptor is None:
            return b""
        parts = list[bytes]()
        while part := os.pread(self._descriptor, _READ_BYTES, offset):
            parts.append(part)
            offset += len(part)
            if len(part) < _READ_BYTES:
                break
        return b"".join(parts)

    def _open(self, flags: int) -> None:
        self._descriptor = os.open(self._path, os.O_APPEND | os.O_RDWR | flags, _MODE)
        weakref.finalize(self, os.close, self._descriptor)


def sync(uri: str) -> None:
    """Make durable what another process may have created a moment ago; nothing to do on other than local disks."""
    fs, path = _resolve(uri)
    if isinstance(fs, LocalFileSystem):
        _sync_path(path)
        if not _is_ordered(posixpath.dirname(path)):
            _sync_path(posixpath.dirname(path))


def move(uri: str, to: str) -> None:
    """Give a file another name in the same filesystem."""
    fs, path = _resolve(uri)
    target = _resolve(to)[1]
    if isinstance(fs, LocalFileSystem):
        os.replace(path, target)
        _sync_path(posixpath.dirname(target))
    else:
        fs.mv(path, target)


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


def _temporary_beside(path: str) -> str:
    folder, name = posixpath.split(path)
    return posixpath.join(folder, f".tmp-{name}-{uuid.uuid4().hex[:8]}")


def _write_local(path: str, data: bytes) -> None:
    folder, temporary = posixpath.dirname(path), _temporary_beside(path)
    made = _make_folder(folder)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folders(folder, made)


def _create_local(path: str, data: bytes, checked: bool, durable: bool) -> bool:
    folder = posixpath.dirname(path)
    made = _make_folder(folder)
    at_once = checked and _is_ordered(folder)
    if not data and not durable:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _MODE))
            return True
        return False
    with _unnamed_file(path) as (descriptor, name):
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        if durable and not at_once:
            os.fsync(descriptor)
        try:
            os.link(name, path, src_dir_fd=descriptor, follow_symlinks=True)
        except FileExistsError:
            return False
        if durable and at_once:
            os.fsync(descriptor)
    if durable and not at_once:
        _sync_folders(folder, made)
    return True


@contextmanager
def _unnamed_file(path: str) -> Iterator[tuple[int, str]]:
    """Yield the descriptor of a new file and what to link it by; it leaves nothing behind if it is not linked.

    Where there are no files without a name, it has a temporary one for a while.
    """
    named = False
    try:
        descriptor = os.open(posixpath.dirname(path), _UNNAMED | os.O_WRONLY, _MODE)
        name = f"/proc/self/fd/{descriptor}"
    except OSError:
        named, name = True, _temporary_beside(path)
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _MODE)
    try:
        yield descriptor, name
    finally:
        os.close(descriptor)
        if named:
            os.unlink(name)


def _make_folder(folder: str) -> list[str]:
    """Make a folder and those above it, and return the ones in which something was made."""
    missing = list[str]()
    while folder and not os.path.isdir(folder):
        missing.append(folder)
        folder = posixpath.dirname(folder)
    if missing:
        os.makedirs(missing[0], exist_ok=True)
    return [posixpath.dirname(name) for name in missing]


def _sync_folders(folder: str, made: list[str]) -> None:
    """Make the entries in a folder durable, and those that were made in the ones above it."""
    _sync_path(folder)
    for above in [] if _is_ordered(folder) else made:
        _sync_path(above)


def _sync_path(path: str) -> None:
    descriptor = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_ordered(folder: str) -> bool:
    return _filesystem(os.stat(folder or ".").st_dev) in _ORDERED


@lru_cache
def _filesystem(device: int) -> str:
    """Return the type of the filesystem with a device number, or nothing where it is not known."""
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:
            mount, _, filesystem = line.partition(" - ")
            if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return filesystem.split()[0]
    return ""
