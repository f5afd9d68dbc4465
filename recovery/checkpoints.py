"""Checkpoints of one task: the newest good one wins.

A checkpoint is a folder of files and a manifest with their hashes, written last. One without a manifest never counts;
one whose files do not match it is reported and passed over for the one before.
"""

import errno
import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from phases import storage
from phases.errors import ArtifactError
from recovery.faults import hook

MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The files of a step, and what was noted beside them."""

    step: int
    files: dict[str, bytes]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints below `uri`, of which the newest `keep` stay, but only the newest for longer than `max_age` s.

    `on_damage` is told of each one that is passed over.
    """

    def __init__(
        self,
        uri: str,
        keep: int = 2,
        max_age: float = math.inf,
        *,
        clock: Callable[[], float] = time.time,
        on_damage: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.uri, self.keep, self.max_age = uri, keep, max_age
        self._clock, self._on_damage = clock, on_damage
        self._damaged: set[str] = set()

    def save(self, step: int, files: dict[str, bytes], **meta: Any) -> None:
        """Write the checkpoint of a step and remove the ones that are too old; after an error there is none of it."""
        saved = self._new_name(step)
        folder = storage.join(self.uri, saved)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        manifest = {"step": step, "files": hashes, "meta": meta, "time": self._clock()}
        try:
            for name, data in files.items():
                storage.write_bytes(storage.join(folder, name), data)
            storage.write_json(storage.join(folder, MANIFEST), manifest)
        except OSError:
            storage.remove(folder)  # a full disk has no room for half of it
            raise
        hook("checkpoint", meta.get("role", ""), step, folder=folder)
        self._retire(saved)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None; each damaged one is told and logged."""
        for name in reversed(storage.names(self.uri)):
            try:
                return self._load(name)
            except ArtifactError as error:
                self._damaged.add(name)
                self._on_damage(str(error))
                _log.warning("checkpoint passed over: %s", error)
        return None

    def clear(self) -> None:
        """Remove them all, once what they led to is committed."""
        storage.remove(self.uri)

    def _new_name(self, step: int) -> str:
        """Return a name behind those of the same step, which stay until this one is whole."""
        name = f"{step:010d}"
        same = [other for other in storage.names(self.uri) if other.startswith(name)]
        return f"{name}.{int(same[-1].partition('.')[2] or 0) + 1:06d}" if same else name

    def _retire(self, saved: str) -> None:
        """Remove all but the newest good ones; what was just saved stays in any case."""
        kept = 0
        for name in reversed(storage.names(self.uri)):
            if name == saved or (kept < self.keep and self._age(name, full=name > saved) <= self.max_age):
                kept += 1
            else:
                storage.remove(storage.join(self.uri, name))

    def _age(self, name: str, full: bool) -> float:
        """Return for how many seconds a checkpoint has been there, NaN where it is not good.

        The files are read only in `full`: of one that is newer than where the work has gone on from.
        """
        if name in self._damaged:
            return math.nan
        try:
            if full:
                self._load(name)
            return self._clock() - float(self._manifest(name).get("time", 0.0))
        except ArtifactError:
            return math.nan

    def _manifest(self, name: str) -> dict[str, Any]:
        path = storage.join(self.uri, name, MANIFEST)
        manifest = storage.read_json(path)
        if not isinstance(manifest, dict) or not {"step", "files", "meta"} <= manifest.keys():
            raise ArtifactError(f"{path}: not a manifest")
        return manifest

    def _load(self, name: str) -> Checkpoint:
        folder, manifest = storage.join(self.uri, name), self._manifest(name)
        files = dict[str, bytes]()
        for file, expected in dict(manifest["files"]).items():
            path = storage.join(folder, file)
            try:
                files[file] = storage.read_bytes(path)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                raise ArtifactError(f"{path}: the disk cannot read it") from error
            if hashlib.sha256(files[file]).hexdigest() != expected:
                raise ArtifactError(f"{path}: altered or torn")
        return Checkpoint(int(manifest["step"]), files, dict(manifest["meta"]))
