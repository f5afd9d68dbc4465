"""Documents from files: text, jsonl, parquet and HDF5, plain or compressed, alone or in folders, and `hf:` datasets.

Everything streams: a file is never read whole, and a text without records is cut into blocks at line ends. Bytes that
are not UTF-8 are replaced and counted; a file that cannot be decoded at all is named.
"""

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
import zstandard

from phases.corpus.config import STDLIB, CorpusConfig
from phases.errors import CorpusError

BLOCK_LIMITS = (1 << 10, 1 << 16)  # bytes; the encoding of a block takes a hundred times its size in memory
LONGEST_LINE = 1 << 20  # bytes; a longer one is cut inside
MANY_FILES = 200  # from here up a file goes whole into one split
_RECORDS = (".jsonl", ".parquet", ".h5", ".hdf5")
_SKIPPED_FOLDERS = ("site-packages", "__pycache__", ".git")


@dataclass(frozen=True)
class Document:
    """A piece of text that stays together. `key` decides its split; `replaced` counts bytes that were not UTF-8."""

    key: bytes
    text: str
    replaced: int


def read_documents(config: CorpusConfig) -> Iterator[Document]:
    """Yield the documents of a source in an order that depends on names alone.

    Raises `CorpusError` naming a file that is broken, and where the source holds no readable file.
    """
    if config.source.startswith("hf:"):
        yield from _huggingface(config)
        return
    fs, root = fsspec.core.url_to_fs(config.location)
    files = _files(fs, root, only_python=config.source == STDLIB)
    if not files:
        raise CorpusError(f"corpus {config.location}: no file in it; name a folder with text files")
    texts = [file for file in files if not _plain_name(file).endswith(_RECORDS)]
    whole = len(texts) >= MANY_FILES
    block = _block_size(sum(fs.size(file) or 0 for file in texts))
    # Shuffled, so that a capped corpus is a sample; by another hash than the one that decides the splits.
    for file in sorted(files, key=lambda name: hashlib.blake2b(_relative(name, root).encode()).digest()):
        key = _relative(file, root).encode() if whole else None
        try:
            with _opened(fs, file) as stream:
                yield from _documents(file, stream, config.text_field, block, key)
        except (OSError, EOFError, ValueError, KeyError, zstandard.ZstdError) as error:
            raise CorpusError(f"corpus file {file}: cannot be read ({error}); repair or remove it") from error


def _files(fs: Any, root: str, only_python: bool) -> list[str]:
    if not fs.isdir(root):
        return [root]
    found = (str(file) for file in fs.find(root))
    kept = (file for file in found if not any(f"/{name}/" in file[len(root) :] for name in _SKIPPED_FOLDERS))
    return sorted(file for file in kept if file.endswith(".py") or not only_python)


def _relative(file: str, root: str) -> str:
    return file[len(root) :] if file != root else file.rsplit("/", 1)[-1]


def _block_size(total: int) -> int:
    smallest, largest = BLOCK_LIMITS
    return min(max(total // 1000, smallest), largest)


def _plain_name(file: str) -> str:
    return file.lower().removesuffix(".gz").removesuffix(".zst")


@contextmanager
def _opened(fs: Any, file: str) -> Iterator[BinaryIO]:
    with fs.open(file, "rb") as raw:
        if file.lower().endswith(".gz"):
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        elif file.lower().endswith(".zst"):
            yield cast(BinaryIO, io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw)))
        else:
            yield raw


def _documents(file: str, stream: BinaryIO, field: str, block: int, key: bytes | None) -> Iterator[Document]:
    name = _plain_name(file)
    if name.endswith(".jsonl"):
        yield from map(_record, _jsonl(stream, field))
    elif name.endswith(".parquet"):
        yield from map(_record, _parquet(stream, field))
    elif name.endswith((".h5", ".hdf5")):
        yield from map(_record, _hdf5(stream, field))
    else:
        yield from _blocks(stream, block, key)


def _record(text: str) -> Document:
    data = text.encode(errors="replace")
    return Document(hashlib.sha256(data).digest(), data.decode(), 0)


def _blocks(stream: BinaryIO, block: int, key: bytes | None) -> Iterator[Document]:
    """Cut a text at the line ends after each `block` bytes; `LONGEST_LINE` at the latest."""
    while lines := _lines(stream, block):
        data = b"".join(lines)
        text = data.decode(errors="replace")
        replaced = text.count("\ufffd") - data.count("\ufffd".encode())
        yield Document(key or hashlib.sha256(data).digest(), text, replaced)


def _lines(stream: BinaryIO, block: int) -> list[bytes]:
    lines, size = [], 0
    while size < block and (line := stream.readline(LONGEST_LINE)):
        lines.append(line)
        size += len(line)
    return lines


def _jsonl(stream: BinaryIO, field: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise ValueError(f"line {number} has no text field {field!r}; set corpus.text_field")
        yield record[field]


def _parquet(stream: BinaryIO, field: str) -> Iterator[str]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(stream)
    if field not in table.schema_arrow.names:
        raise ValueError(f"no column {field!r} among {table.schema_arrow.names}; set corpus.text_field")
    for batch in table.iter_batches(batch_size=256, columns=[field]):
        yield from (value for value in batch.column(0).to_pylist() if value is not None)


def _hdf5(stream: BinaryIO, field: str) -> Iterator[str]:
    try:
        import h5py
    except ImportError as error:
        raise ValueError("reading HDF5 needs h5py: pip install 'agent-forge[hdf5]'") from error
    with h5py.File(stream, "r") as file:
        if field not in file:
            raise ValueError(f"no dataset {field!r} among {list(file)}; set corpus.text_field")
        dataset = file[field].asstr(errors="replace")
        for start in range(0, len(dataset), 256):
            yield from dataset[start : start + 256]


def _huggingface(config: CorpusConfig) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise CorpusError(f"{config.source}: needs the datasets package: pip install 'agent-forge[hf]'") from error
    load: Callable[..., Any] = load_dataset
    try:
        for record in load(config.source.removeprefix("hf:"), split="train", streaming=True):
            if config.text_field not in record:
                raise ValueError(f"no column {config.text_field!r} among {list(record)}; set corpus.text_field")
            yield _record(record[config.text_field])
    except (OSError, ValueError) as error:
        raise CorpusError(f"{config.source}: cannot be read ({error})") from error
