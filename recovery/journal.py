"""The journal of a run: one small JSON object per event, numbered, checksummed and chained.

An event is put with a conditional create, so a number is given once even if two processes write. Each event holds the
checksum of the one before, so a torn, altered or missing event is named when the journal is read.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from phases import storage
from phases.errors import ArtifactError

VERSION = 1


@dataclass(frozen=True)
class Event:
    """Something that happened. `number` counts from 1."""

    number: int
    kind: str
    time: str
    data: dict[str, Any]


class Journal:
    """The journal of the run at `run`. Appending remembers the place and lists the folder only once."""

    def __init__(self, run: str) -> None:
        self.folder = storage.join(run, "journal")
        self._number: int | None = None
        self._checksum = ""

    def append(self, kind: str, **data: Any) -> Event:
        """Put an event behind the last one, also where another process has put some in between."""
        if self._number is None:
            self._seek_end()
        assert self._number is not None
        while True:
            event = Event(self._number + 1, kind, datetime.now(UTC).isoformat(), data)
            body = {"version": VERSION, "before": self._checksum, **vars(event)}
            checksum = _checksum(body)
            if storage.create(self._path(event.number), json.dumps(body | {"checksum": checksum}).encode()):
                self._number, self._checksum = event.number, checksum
                return event
            self._seek_end()

    def read(self, kind: str | None = None) -> Iterator[Event]:
        """Yield the events in order, only those of a `kind` where one is named.

        Raises `ArtifactError` naming an event that is torn, altered or missing, or of a newer version.
        """
        before = ""
        for expected, name in enumerate(storage.names(self.folder), start=1):
            path = storage.join(self.folder, name)
            if name != f"{expected:08d}.json":
                raise ArtifactError(f"{self._path(expected)}: missing from the journal")
            body = storage.read_json(path)
            if body.get("version", 0) > VERSION:
                raise ArtifactError(f"{path}: written by a newer version of Agent Forge; update this one")
            checksum = body.pop("checksum", None)
            if checksum != _checksum(body) or body["before"] != before:
                raise ArtifactError(f"{path}: altered since it was written")
            before = checksum
            if kind in (None, body["kind"]):
                yield Event(body["number"], body["kind"], body["time"], body["data"])

    def _seek_end(self) -> None:
        self._number, self._checksum = 0, ""
        if names := storage.names(self.folder):
            last = storage.read_json(storage.join(self.folder, names[-1]))
            self._number, self._checksum = int(last["number"]), str(last["checksum"])

    def _path(self, number: int) -> str:
        return storage.join(self.folder, f"{number:08d}.json")


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
