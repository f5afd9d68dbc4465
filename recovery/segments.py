"""A durable log of numbered segments in any filesystem, written by one process at a time.

A segment is put by conditional create: of two writers that stand at the same place one wins, and the other learns from
the store that it is fenced off. A segment may be a snapshot, behind which nothing is needed; those before it are then
removed. The first segment of every writer is a snapshot that stays, emptied, for ever: a writer that was frozen when
another took over stands just before it, and must find its next number taken however late it wakes. Each segment holds
its checksum and that of the one before.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntFlag

from phases import storage
from phases.errors import ArtifactError
from recovery.commits import FencedError

_HEADER = struct.Struct("<4sBBQII")  # magic, version, flags, number, checksum of the segment before, own checksum
_MAGIC = b"AFSG"
_VERSION = 1


class Flags(IntFlag):
    """What a segment is besides its payload."""

    PLAIN = 0
    SNAPSHOT = 1
    TAKEOVER = 2


@dataclass(frozen=True)
class Segment:
    """One segment as read from the store."""

    number: int
    flags: Flags
    before: int
    checksum: int
    payload: bytes


class SegmentLog:
    """The log below `uri`. Opening it reads nothing; `load` before the first `append`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.position = 0
        self.snapshot = 0
        self._checksum = 0
        self._first = 0  # of those that this writer has put
        self._compacted = 0  # before it are only those that stay

    def load(self) -> list[bytes]:
        """Return the payloads from the newest snapshot on, and stand behind the last.

        Raises `ArtifactError` naming a segment that is missing, torn, altered, or of a newer version.
        """
        numbers = self.numbers()
        self.position, self.snapshot, self._checksum = numbers[-1] if numbers else 0, 0, 0
        segments = list[Segment]()
        for number in range(self.position, 0, -1):
            segments.append(self.read(number))
            if len(segments) > 1 and segments[-1].checksum != segments[-2].before:
                raise ArtifactError(f"{self._path(number)}: not the one that the next segment was written after")
            if segments[-1].flags & Flags.SNAPSHOT:
                self.snapshot = number
                break
        if segments:
            self._checksum = segments[0].checksum
        return [segment.payload for segment in reversed(segments)]

    def append(self, payload: bytes, flags: Flags = Flags.PLAIN) -> int:
        """Put a segment behind the last and return its number. Raises `FencedError` where another writer has."""
        number = self.position + 1
        data = _pack(number, flags, self._checksum, payload)
        if not storage.create(self._path(number), data):
            raise FencedError(f"{self._path(number)}: written by another process, which has taken over; stop this one")
        self.position, self._checksum = number, _unpack_header(data)[5]
        self._first = self._first or number
        if flags & Flags.SNAPSHOT:
            self.snapshot = number
        return number

    def compact(self) -> None:
        """Remove the segments before the newest snapshot, and empty those that fence off earlier writers."""
        for number in self.numbers():
            if self._compacted <= number < self.snapshot:
                self._discard(number)
        self._compacted = self.snapshot

    def numbers(self) -> list[int]:
        """Return the numbers of the segments that are there."""
        return [int(name) for name in storage.names(self.uri) if name.isdigit()]

    def read(self, number: int) -> Segment:
        """Return one segment. Raises `ArtifactError` where it is not whole."""
        path = self._path(number)
        data = storage.read_bytes(path)
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise ArtifactError(f"{path}: torn or not a segment; {_REMEDY}")
        _, version, flags, written, before, checksum = _unpack_header(data)
        if version > _VERSION:
            raise ArtifactError(f"{path}: written by a newer version of Agent Forge; update this one")
        if written != number or checksum != zlib.crc32(data[_HEADER.size :], zlib.crc32(data[: _HEADER.size - 4])):
            raise ArtifactError(f"{path}: altered or torn; {_REMEDY}")
        return Segment(number, Flags(flags), before, checksum, data[_HEADER.size :])

    def _discard(self, number: int) -> None:
        if number <= self._first:
            segment = self.read(number)
            if segment.flags & Flags.TAKEOVER:
                storage.write_bytes(self._path(number), _pack(number, segment.flags, segment.before, b""))
                return
        storage.remove(self._path(number))

    def _path(self, number: int) -> str:
        return storage.join(self.uri, f"{number:010d}")


_REMEDY = "remove it and the later ones to go on from before it"


def _pack(number: int, flags: Flags, before: int, payload: bytes) -> bytes:
    header = _HEADER.pack(_MAGIC, _VERSION, flags, number, before, 0)[:-4]
    return header + struct.pack("<I", zlib.crc32(payload, zlib.crc32(header))) + payload


def _unpack_header(data: bytes) -> tuple[bytes, int, int, int, int, int]:
    magic, version, flags, number, before, checksum = _HEADER.unpack_from(data)
    return magic, version, flags, number, before, checksum
