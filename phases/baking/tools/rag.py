"""`rag_query`: passages of a local corpus, ranked by BM25 in SQLite's FTS5 index. One file, nothing to serve.

A query's words are searched for as they are: operators of FTS5 in it have no meaning, and a word that is nowhere does
not empty the result.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from phases.errors import ArtifactError, ConfigError

PASSAGE = 800  # characters; about 200 tokens
_SUFFIXES = frozenset({".txt", ".md", ".py", ".rst", ".csv"})
_MAX_WORDS = 64


@dataclass(frozen=True)
class Passage:
    """A passage found. A higher score fits better."""

    source: str
    text: str
    score: float


class Index:
    """A full-text index in the file at `path`."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ArtifactError(f"{path}: no index there; build one with Index.build")
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)

    @classmethod
    def build(cls, documents: Iterable[tuple[str, str]], path: Path) -> "Index":
        """Index (name, text) documents into the file at `path`, which appears only when it is whole."""
        part = path.with_name(f".tmp-{path.name}")
        part.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(part)
        try:
            db.execute("CREATE VIRTUAL TABLE passages USING fts5(source UNINDEXED, text, tokenize='porter unicode61')")
            rows = ((name, passage) for name, text in documents for passage in passages(text))
            db.executemany("INSERT INTO passages VALUES (?, ?)", rows)
            db.execute("INSERT INTO passages(passages) VALUES ('optimize')")
            db.commit()
        finally:
            db.close()
        part.replace(path)
        return cls(path)

    @classmethod
    def of_folder(cls, folder: Path, path: Path) -> "Index":
        """Index the text files of a folder. Raises `ConfigError` where there are none."""
        files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in _SUFFIXES)
        if not files:
            raise ConfigError.of("folder", str(folder), "holds no text files", f"use {', '.join(sorted(_SUFFIXES))}")
        named = ((str(file.relative_to(folder)), file.read_text("utf-8", errors="replace")) for file in files)
        return cls.build(named, path)

    def search(self, query: str, k: int = 5) -> list[Passage]:
        """Return the `k` best passages for the words of a query; none where it has no word that is anywhere."""
        words = re.findall(r"\w+", query)[:_MAX_WORDS]
        if not words or k < 1:
            return []
        match = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))
        sql = (
            "SELECT source, text, -bm25(passages) FROM passages WHERE passages MATCH ? "
            "ORDER BY bm25(passages), rowid LIMIT ?"
        )
        return [Passage(*row) for row in self._db.execute(sql, (match, k))]

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM passages").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def passages(text: str) -> Iterator[str]:
    """Cut a text at line ends into passages of about `PASSAGE` characters; a longer line stays whole."""
    part, size = list[str](), 0
    for line in text.splitlines():
        if part and size + len(line) > PASSAGE:
            yield "\n".join(part)
            part, size = [], 0
        if line.strip():
            part.append(line)
            size += len(line) + 1
    if part:
        yield "\n".join(part)
