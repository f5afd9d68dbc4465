"""The fitness ledger: one small file per candidate, named by what was measured.

An entry is put with a conditional create and never changes, so that any number of workers may write, a resumed search
pays for nothing twice, and elites and duplicates are found here. A candidate that is lost has an entry that says why:
then the ledger alone decides how a search goes, and it can be replayed from there without measuring anything.
"""

import json
from dataclasses import asdict, dataclass

from phases import storage
from phases.errors import ArtifactError
from phases.evomerge.fitness import Measured


@dataclass(frozen=True)
class Lost:
    """A candidate that could not be measured."""

    reason: str


class Ledger:
    """Entries under `folder`, any fsspec URI."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def get(self, key: str) -> Measured | Lost | None:
        """Return the entry of `key`, None where there is none. Raises `ArtifactError` naming a broken one."""
        path = self._path(key)
        if not storage.exists(path):
            return None
        values = storage.read_json(path)
        try:
            return (
                Lost(**values) if "reason" in values else Measured(**values | {"position": tuple(values["position"])})
            )
        except (TypeError, KeyError) as error:
            raise ArtifactError(f"{path}: not a ledger entry ({error}); remove it to measure again") from error

    def put(self, key: str, entry: Measured | Lost) -> bool:
        """Add an entry; return whether it is new."""
        return storage.create(self._path(key), json.dumps(asdict(entry)).encode())

    def __len__(self) -> int:
        return len(storage.names(self.folder))

    def _path(self, key: str) -> str:
        return storage.join(self.folder, f"{key}.json")
