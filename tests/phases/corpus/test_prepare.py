"""Preparing a corpus: whole or not there, splits by document, duplicates dropped, memory that does not grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from phases.corpus.config import CorpusConfig
from phases.corpus.packed import Corpus
from phases.corpus.prepare import prepare
from phases.corpus.special import END_OF_TEXT, SPECIAL_IDS
from phases.errors import ArtifactError, CorpusError

PEAK = """
import resource, sys
from pathlib import Path
from phases.corpus.config import CorpusConfig
from phases.corpus.prepare import prepare
config = CorpusConfig(source=sys.argv[1], vocab_size=512, tokenizer_bytes=1 << 20)
prepare(config, seed=0, folder=Path(sys.argv[2]), progress=lambda *_: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make(folder: Path, source: Path, **changes: int) -> Corpus:
    config = CorpusConfig(source=str(source), vocab_size=300, **changes)
    return prepare(config, seed=0, folder=folder, progress=lambda *_: None)


def numbered(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"text": f"document number {n} of many\n"}) + "\n" for n in range(count)))
    return path


def documents(corpus: Corpus, split: str) -> set[str]:
    text = corpus.tokenizer.decode(corpus.tokens(split).tolist(), skip_special_tokens=False)
    return set(text.split(END_OF_TEXT)) - {""}


def test_no_document_is_in_two_splits(tmp_path: Path) -> None:
    corpus = make(tmp_path / "c", numbered(tmp_path / "a.jsonl", 400))
    parts = [documents(corpus, split) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 400
    assert 0.8 < len(parts[0]) / 400 < 0.97


def test_a_file_of_many_is_not_cut(corpus: Corpus) -> None:
    facts = json.loads((corpus.folder / "corpus.json").read_text())
    ends = {split: int((corpus.tokens(split) == SPECIAL_IDS[END_OF_TEXT]).sum()) for split in facts["documents"]}
    assert ends == facts["documents"]
    assert {split: len(corpus.tokens(split)) for split in ends} == facts["tokens"]


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 300)
    path.write_text(path.read_text() * 2)
    corpus = make(tmp_path / "c", path)
    assert json.loads((corpus.folder / "corpus.json").read_text())["duplicates"] == 300


def test_it_is_made_once_and_made_again_where_the_configuration_differs(tmp_path: Path) -> None:
    source = numbered(tmp_path / "a.jsonl", 300)
    first = make(tmp_path / "c", source)
    stamp = (first.folder / "train.bin").stat().st_mtime_ns
    assert (make(tmp_path / "c", source).folder / "train.bin").stat().st_mtime_ns == stamp
    assert (make(tmp_path / "c", source, max_bytes=9000).folder / "train.bin").stat().st_mtime_ns != stamp


def test_half_a_corpus_is_no_corpus(tmp_path: Path) -> None:
    corpus = make(tmp_path / "c", numbered(tmp_path / "a.jsonl", 300))
    (corpus.folder / "corpus.json").unlink()
    with pytest.raises(ArtifactError, match=r"corpus\.json"):
        Corpus.open(corpus.folder)
    make(tmp_path / "c", tmp_path / "a.jsonl").verify()


def test_an_altered_token_file_is_named(tmp_path: Path) -> None:
    corpus = make(tmp_path / "c", numbered(tmp_path / "a.jsonl", 300))
    data = bytearray((corpus.folder / "test.bin").read_bytes())
    data[0] ^= 1
    (corpus.folder / "test.bin").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"test\.bin: altered"):
        corpus.verify()


@pytest.mark.parametrize(
    ("text", "message"), [("", "there is no text"), ("\n \n", "there is no text"), ("x", "more text")]
)
def test_too_little_text_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(CorpusError, match=message):
        make(tmp_path / "c", tmp_path / "a.txt")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    def peak(megabytes: int) -> int:
        source = tmp_path / f"{megabytes}.txt"
        with source.open("w") as file:
            for number in range(megabytes * 1000):
                file.write(f"{number:08d} {'some words that repeat and a number ' * 28}"[:999] + "\n")
        command = [sys.executable, "-c", PEAK, str(source), str(tmp_path / f"c{megabytes}")]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    small, large = peak(6), peak(60)
    assert large < 1.2 * small


def test_a_corpus_can_take_the_tokenizer_of_another(tmp_path: Path) -> None:
    first = make(tmp_path / "a", numbered(tmp_path / "a.jsonl", 300))
    (tmp_path / "b.txt").write_text("\n\n".join(f"other words {number * 7} entirely" for number in range(900)))
    config = CorpusConfig(source=str(tmp_path / "b.txt"), tokenizer=str(first.folder / "tokenizer.json"))
    second = prepare(config, seed=0, folder=tmp_path / "b", progress=lambda *_: None)
    assert second.tokenizer.to_str() == first.tokenizer.to_str()
    assert "other words 7 entirely" in second.tokenizer.decode(second.tokens("train").tolist())
    foreign = tmp_path / "foreign.json"
    foreign.write_text(first.tokenizer.to_str().replace("<|pad|>", "<|nothing|>"))
    with pytest.raises(CorpusError, match="not at its place"):
        prepare(config.model_copy(update={"tokenizer": str(foreign)}), seed=0, folder=tmp_path / "c", progress=print)
