"""Checkpoints of one task: the newest good one wins.

A checkpoint is a folder of files and a manifest with their hashes, written last. One without a manifest never counts;
one whose files do not match it is reported and passed over for the one before.
"""

import hashlib
import json
import logging
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
    """The checkpoints below `uri`, of which the newest `keep` stay."""

    def __init__(self, uri: str, keep: int = 2) -> None:
        self.uri = uri
        self.keep = keep

    def save(self, step: int, files: dict[str, bytes], **meta: Any) -> None:
        """Write the checkpoint of a step and remove the ones that are too old."""
        folder = self._folder(step)
        storage.remove(folder)
        for name, data in files.items():
            storage.write_bytes(storage.join(folder, name), data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        storage.write_json(storage.join(folder, MANIFEST), {"step": step, "files": hashes, "meta": meta})
        hook("checkpoint", meta.get("role", ""), step, folder=folder)
        for name in storage.names(self.uri)[: -self.keep]:
            storage.remove(storage.join(self.uri, name))

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None; each damaged one is logged with what is wrong."""
        for name in reversed(storage.names(self.uri)):
            try:
                return self._load(storage.join(self.uri, name))
            except ArtifactError as error:
                _log.warning("checkpoint passed over: %s", error)
        return None

    def clear(self) -> None:
        """Remove them all, once what they led to is committed."""
        storage.remove(self.uri)

    def _folder(self, step: int) -> str:
        return storage.join(self.uri, f"{step:010d}")

    def _load(self, folder: str) -> Checkpoint:
        try:
            manifest = storage.read_json(storage.join(folder, MANIFEST))
            step, hashes, meta = manifest["step"], manifest["files"], manifest["meta"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{folder}/{MANIFEST}: not a manifest ({error})") from error
        files = {name: storage.read_bytes(storage.join(folder, name)) for name in hashes}
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != hashes[name]:
                raise ArtifactError(f"{folder}/{name}: altered or torn")
        return Checkpoint(int(step), files, dict(meta))
