"""Safetensors checkpoints as mappings from names to tensors that are read when asked for.

A checkpoint is a folder with `model.safetensors`, or with shards and `model.safetensors.index.json`, or one file. Only
the headers are read at opening. Each `read` maps that tensor's own bytes and no others, and the pages go when the
tensor goes, so what is resident does not grow with the size or number of the checkpoints. Nothing is ever unpickled.
"""

import json
import math
import mmap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from phases import storage
from phases.errors import ArtifactError
from phases.evomerge import layers
from phases.evomerge.layers import Place, Stacks
from phases.modeldir import combined_digest

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


class Entry(NamedTuple):
    """Where a tensor is: `start` counts bytes from the beginning of `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. `uri` is how the user named it, `folder` where it is on this machine."""

    uri: str
    folder: Path
    entries: dict[str, Entry]
    config: dict[str, Any]

    def names(self) -> tuple[str, ...]:
        """Return the tensors' names in the order of the files."""
        return tuple(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self._entry(name).dtype

    def read(self, name: str) -> torch.Tensor:
        """Map a tensor from its file. Writing to the result would not reach the file, but would take memory."""
        entry = self._entry(name)
        count = math.prod(entry.shape)
        if count == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        skip = entry.start % mmap.ALLOCATIONGRANULARITY
        with entry.file.open("rb") as file:
            length = skip + count * entry.dtype.itemsize
            pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=entry.start - skip)
        tensor = torch.frombuffer(pages, dtype=entry.dtype, count=count, offset=skip).view(entry.shape)
        return tensor if skip % entry.dtype.itemsize == 0 else tensor.clone()

    def digest(self) -> str:
        """Return the SHA-256 of the weights, read in blocks; of shards, that of the lines `name hash` of each."""
        return combined_digest({file.name: storage.sha256(str(file)) for file in self.files})

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with weights, sorted by name."""
        return tuple(sorted({entry.file for entry in self.entries.values()}))

    @cached_property
    def stacks(self) -> Stacks:
        """The numbered layers."""
        return layers.find_stacks(self.entries)

    def layer(self, number: int) -> list[Place]:
        """Return the places of the tensors in a numbered layer, of all stacks, in the order of the files."""
        return self._layers.get(number, [])

    @cached_property
    def head(self) -> str | None:
        """The matrix of the logits; None where it is not stored, or where the configuration says that it is tied."""
        found = next((name for name in self.entries if layers.is_head(name)), None)
        return None if self._says_tied() is True else found

    @cached_property
    def embedding(self) -> str | None:
        """The input embedding of the vocabulary."""
        ends = (name for name in self.entries if self.stacks.place(name) is None)
        return next((name for name in ends if layers.is_token_embedding(name)), None)

    @property
    def tied(self) -> bool:
        """Whether the input embedding serves as the head."""
        return self.head is None and self.embedding is not None and self._says_tied() is not False

    @cached_property
    def _layers(self) -> dict[int, list[Place]]:
        found: dict[int, list[Place]] = {}
        for name in self.entries:
            if (place := self.stacks.place(name)) is not None:
                found.setdefault(place.layer, []).append(place)
        return found

    def _says_tied(self) -> bool | None:
        told = [self.config[key] for key in ("tie_word_embeddings", "tied") if key in self.config]
        return bool(told[0]) if told else None

    def _entry(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise ArtifactError(f"{self.uri}: no tensor {name!r}") from None


def open_checkpoint(uri: str | Path) -> Checkpoint:
    """Open a checkpoint by its folder (any fsspec URI) or its one file, reading headers only.

    Raises `ArtifactError` naming the file that is missing, torn or not safetensors.
    """
    uri = str(uri)
    if uri.endswith(".safetensors") and Path(uri).is_file():
        return Checkpoint(uri, Path(uri).parent, read_header(Path(uri)), _config(Path(uri).parent))
    try:
        folder = storage.local_folder(uri)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; name a local checkpoint (fetch hub models and merge adapters first)") from error
    if (folder / SINGLE).is_file():
        entries = read_header(folder / SINGLE)
    elif (folder / INDEX).is_file():
        entries = _read_shards(folder / INDEX)
    else:
        entries = read_header(_only_file(folder))
    return Checkpoint(uri, folder, entries, _config(folder))


def read_header(file: Path) -> dict[str, Entry]:
    """Return the tensors of a safetensors file in the order of their bytes, each checked against the file's length."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ArtifactError(f"{file}: not a valid safetensors file (torn or of another format)")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            found = {name: _entry(file, value, 8 + length) for name, value in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{file}: not a valid safetensors header ({error!r})") from error
    for name, entry in found.items():
        end = entry.start + math.prod(entry.shape) * entry.dtype.itemsize
        if end > size:
            raise ArtifactError(f"{file}: torn at {name}: it ends at byte {end:,} of {size:,}")
    return dict(sorted(found.items(), key=lambda item: item[1].start))


def _entry(file: Path, value: dict[str, Any], data: int) -> Entry:
    """Return the entry that a header's `value` describes, its offsets counted from byte `data`."""
    if value["dtype"] not in DTYPES:
        raise ArtifactError(f"{file}: dtype {value['dtype']} is not supported; convert to F32, F16 or BF16")
    dtype, shape = DTYPES[value["dtype"]], tuple(int(size) for size in value["shape"])
    start, end = (int(offset) for offset in value["data_offsets"])
    if min(shape, default=0) < 0 or start < 0 or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"offsets {start}..{end} do not hold {value['dtype']} {shape}")
    return Entry(file, dtype, shape, data + start)


def _read_shards(index: Path) -> dict[str, Entry]:
    content = storage.read_json(str(index))
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ArtifactError(f"{index}: no weight_map")
    entries: dict[str, Entry] = {}
    for shard in sorted(set(places.values())):
        file = index.parent / Path(shard).name
        if not file.is_file():
            raise ArtifactError(f"{file}: missing, though {INDEX} names it")
        header = read_header(file)
        mine = [name for name, where in places.items() if where == shard]
        if absent := [name for name in mine if name not in header]:
            raise ArtifactError(f"{file}: no tensor {absent[0]!r}, though {INDEX} says so")
        entries |= {name: entry for name, entry in header.items() if places.get(name) == shard}
    return entries


def _only_file(folder: Path) -> Path:
    """Return the one safetensors file of a folder that has neither of the usual names."""
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter"))
    if len(files) == 1:
        return files[0]
    pickles = "; weights in pickle files must be converted first" if any(folder.glob("*.bin")) else ""
    raise ArtifactError(f"{folder}: neither {SINGLE} nor {INDEX}{pickles}")


def _config(folder: Path) -> dict[str, Any]:
    return dict(storage.read_json(str(folder / CONFIG))) if (folder / CONFIG).is_file() else {}
