"""Every kind of source gives its documents, and a broken file is named."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from phases.corpus.config import CorpusConfig
from phases.corpus.sources import read_documents
from phases.errors import ConfigError, CorpusError

TEXTS = ["first text\n", "second text, with ümlaut\n"]


def texts(source: Path, **changes: str) -> list[str]:
    return sorted(document.text for document in read_documents(CorpusConfig(source=str(source), **changes)))


def jsonl() -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.h5"])
def test_records(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path)
    elif name == "a.h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["text"] = TEXTS
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(jsonl()))
    elif name.endswith(".zst"):
        path.write_bytes(zstandard.compress(jsonl()))
    else:
        path.write_bytes(jsonl())
    assert texts(path) == TEXTS


def test_text_alone_in_folders_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text(TEXTS[0])
    (tmp_path / "deep" / "b.txt.gz").write_bytes(gzip.compress(TEXTS[1].encode()))
    assert texts(tmp_path) == TEXTS
    assert texts(tmp_path / "a.txt") == TEXTS[:1]


def test_long_text_is_cut_at_line_ends_and_nothing_is_lost(tmp_path: Path) -> None:
    lines = [f"line {number}\n" for number in range(5000)]
    (tmp_path / "long.txt").write_text("".join(lines))
    documents = list(read_documents(CorpusConfig(source=str(tmp_path / "long.txt"))))
    assert len(documents) > 10
    assert "".join(document.text for document in documents) == "".join(lines)
    assert all(document.text.endswith("\n") for document in documents)


def test_bad_bytes_are_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes("a\ufffdb".encode() + b"\xff\xfe c")
    (document,) = read_documents(CorpusConfig(source=str(tmp_path)))
    assert document.text == "a\ufffdb\ufffd\ufffd c"
    assert document.replaced == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("torn.txt.gz", gzip.compress(b"text " * 100, mtime=0)[:-10], "torn.txt.gz"),
        ("torn.txt.zst", b"(\xb5/\xfd nonsense", "torn.txt.zst"),
        ("bad.jsonl", b'{"text": "x"}\n{"text": ', "line 2 is not JSON"),
        ("other.jsonl", b'{"body": "x"}\n', "no text field 'text'"),
        ("bad.parquet", b"PAR1 nothing", "bad.parquet"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_documents(CorpusConfig(source=str(tmp_path))))


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing at this path"):
        CorpusConfig(source=str(tmp_path / "none"))
    with pytest.raises(CorpusError, match="no file in it"):
        list(read_documents(CorpusConfig(source=str(tmp_path))))


def test_a_dataset_by_its_name_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    pytest.importorskip("datasets")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl())
    found = read_documents(CorpusConfig(source=f"hf:{folder}"))
    assert sorted(document.text for document in found) == TEXTS
    with pytest.raises(CorpusError, match="no column 'body' among"):
        list(read_documents(CorpusConfig(source=f"hf:{folder}", text_field="body")))
    with pytest.raises(CorpusError, match="hf:no/such: cannot be read"):
        list(read_documents(CorpusConfig(source="hf:no/such")))


def test_another_field_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    assert texts(tmp_path, text_field="body") == ["x"]
