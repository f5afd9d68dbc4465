"""A small prepared corpus that tests share."""

from pathlib import Path

import pytest

from phases.corpus.config import CorpusConfig
from phases.corpus.packed import Corpus
from phases.corpus.prepare import prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder: Path = tmp_path_factory.mktemp("corpus") / "00_corpus"
    return prepare(CorpusConfig(max_bytes=600_000, vocab_size=512), seed=0, folder=folder, progress=lambda *_: None)
