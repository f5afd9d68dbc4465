"""From a source to token files: tokenizer, one file of token ids per split, and `corpus.json`, written last.

The source is streamed twice, once to learn the tokenizer from a sample and once to encode it. In memory are a batch of
documents and an 8-byte digest of each document seen, for dropping duplicates. A folder with `corpus.json` is whole; a
folder made from the same configuration is used as it is.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer

from phases import storage
from phases.corpus.config import CorpusConfig
from phases.corpus.packed import CORPUS, Corpus
from phases.corpus.sources import Document, read_documents
from phases.corpus.special import END_OF_TEXT, SPECIAL_IDS
from phases.corpus.tasks import SPLITS, TASKS, split_of, task_instances
from phases.corpus.tokenizer import load_tokenizer, train_tokenizer
from phases.errors import CorpusError

_BATCH_BYTES = 1 << 20
_TASK_SAMPLE = 2000  # instances per task that the tokenizer sees
Progress = Callable[[str, float], None]


class _Counts:
    """What was read, for `corpus.json`."""

    def __init__(self) -> None:
        self.documents = dict.fromkeys(SPLITS, 0)
        self.bytes = dict.fromkeys(SPLITS, 0)
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.replaced_bytes = 0
        self.duplicates = 0


def prepare(config: CorpusConfig, *, seed: int, folder: Path, progress: Progress) -> Corpus:
    """Write the corpus into `folder`, or take it as it is where it is complete; return it opened.

    `progress` gets a stage and, where it is known, the share done. Raises `CorpusError` for an empty or broken source.
    """
    wanted = {"config": config.model_dump(mode="json"), "seed": seed}
    if (folder / CORPUS).exists():
        recorded = storage.read_json(str(folder / CORPUS))
        if {key: recorded.get(key) for key in wanted} == wanted:
            return Corpus.open(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    progress("learning the tokenizer", 0.0)
    tokenizer = _learn_tokenizer(config, seed) if config.tokenizer is None else _take_tokenizer(config.tokenizer)
    storage.write_bytes(str(folder / "tokenizer.json"), tokenizer.to_str().encode())
    counts = _encode(config, tokenizer, folder, progress)
    if missing := [split for split in SPLITS if not counts.tokens[split]]:
        raise CorpusError(
            f"corpus {config.source}: {sum(counts.documents.values())} documents leave nothing for"
            f" {' and '.join(missing)}; give it more text"
        )
    files = {name: storage.sha256(str(folder / name)) for name in ("tokenizer.json", *map(_token_file, SPLITS))}
    storage.write_json(str(folder / CORPUS), wanted | vars(counts) | {"files": files})
    return Corpus.open(folder)


def _token_file(split: str) -> str:
    return f"{split}.bin"


def _learn_tokenizer(config: CorpusConfig, seed: int) -> Tokenizer:
    train = (document.text for document in _unique(config, _Counts()) if split_of(document.key) == "train")
    tasks = (
        f"{instance.prompt} {instance.answer}"
        for name in TASKS
        for instance in task_instances(name, "train", _TASK_SAMPLE, seed)
    )
    tokenizer = train_tokenizer(itertools.chain(_first(train, config.tokenizer_bytes), tasks), config.vocab_size)
    if (learned := tokenizer.get_vocab_size()) < config.vocab_size:
        # A small corpus has too few pairs to merge. The model keeps its rows; the tokenizer never emits these ids.
        tokenizer.add_tokens([f"<|unused{number}|>" for number in range(config.vocab_size - learned)])
    return tokenizer


def _take_tokenizer(uri: str) -> Tokenizer:
    """Return a tokenizer that another corpus made. Raises `CorpusError` where its special tokens are not ours."""
    tokenizer = load_tokenizer(storage.read_bytes(uri).decode())
    if missing := [token for token, number in SPECIAL_IDS.items() if tokenizer.token_to_id(token) != number]:
        raise CorpusError(f"{uri}: {missing[0]} is not at its place; use the tokenizer of a model that forge has made")
    return tokenizer


def _first(texts: Iterable[str], limit: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        yield text
        taken += len(text)
        if taken >= limit:
            return


def _unique(config: CorpusConfig, counts: _Counts) -> Iterator[Document]:
    """Yield documents until `max_bytes`, dropping empty ones and exact duplicates by hash."""
    seen: set[int] = set()
    total = 0
    for document in read_documents(config):
        digest = int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8], "big")
        if not document.text.strip():
            continue
        if digest in seen:
            counts.duplicates += 1
            continue
        seen.add(digest)
        counts.replaced_bytes += document.replaced
        yield document
        total += len(document.text)
        if config.max_bytes is not None and total >= config.max_bytes:
            return


def _encode(config: CorpusConfig, tokenizer: Tokenizer, folder: Path, progress: Progress) -> _Counts:
    counts = _Counts()
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    files = {split: open(folder / f".tmp-{split}", "wb") for split in SPLITS}  # noqa: SIM115
    try:
        done = 0
        for batch in _batches(_unique(config, counts)):
            _encode_batch(tokenizer, batch, files, counts, dtype)
            done += sum(len(document.text) for document in batch)
            progress("encoding", min(1.0, done / config.max_bytes) if config.max_bytes else 0.0)
    finally:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
    if not sum(counts.documents.values()):
        raise CorpusError(f"corpus {config.source}: there is no text in it")
    for split in SPLITS:
        os.replace(folder / f".tmp-{split}", folder / _token_file(split))
    return counts


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(
    tokenizer: Tokenizer,
    batch: list[Document],
    files: Mapping[str, BinaryIO],
    counts: _Counts,
    dtype: type[np.uint16] | type[np.uint32],
) -> None:
    encodings = tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
    for document, encoding in zip(batch, encodings, strict=True):
        split = split_of(document.key)
        ids = np.array([*encoding.ids, SPECIAL_IDS[END_OF_TEXT]], dtype)
        files[split].write(ids.tobytes())
        counts.documents[split] += 1
        counts.bytes[split] += len(document.text.encode())
        counts.tokens[split] += len(ids)
