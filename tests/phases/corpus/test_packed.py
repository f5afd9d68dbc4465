"""Batches are pure functions of their arguments, and rows hold what the mix says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.corpus.config import MixConfig
from phases.corpus.packed import Corpus
from phases.corpus.special import END_OF_TEXT, SPECIAL_IDS, USER
from phases.errors import ConfigError

MIX = MixConfig(text=0.5, arithmetic=0.25, recall=0.25).shares


def batch(corpus: Corpus, step: int, **changes: object) -> np.ndarray:
    arguments = {"batch_size": 3, "seq_len": 40, "mix": MIX, "seed": 5} | changes
    return corpus.batch(step, **arguments)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=4))
def test_a_batch_depends_on_its_step_alone(corpus: Corpus, others: list[int]) -> None:
    expected = batch(corpus, 17)
    for step in others:
        batch(corpus, step)
    assert np.array_equal(batch(corpus, 17), expected)


def test_steps_seeds_and_splits_differ(corpus: Corpus) -> None:
    rows = {batch(corpus, step, seed=seed).tobytes() for step in range(5) for seed in (1, 2)}
    assert len(rows) == 10


def test_a_text_epoch_sees_each_window_once(corpus: Corpus) -> None:
    length = 101
    windows = len(corpus.tokens("validation")) // length
    rows = [
        corpus.batch(step, batch_size=1, seq_len=length - 1, mix={"text": 1.0}, seed=3, split="validation")[0]
        for step in range(windows)
    ]
    expected = corpus.tokens("validation")[: windows * length].reshape(windows, length)
    assert sorted(row.tobytes() for row in rows) == sorted(row.astype(np.int64).tobytes() for row in expected)


def test_task_rows_are_tasks_and_text_rows_are_text(corpus: Corpus) -> None:
    tasks = corpus.batch(0, batch_size=4, seq_len=60, mix={"arithmetic": 1.0}, seed=0)
    assert (tasks[:, 0] == SPECIAL_IDS[USER]).all()
    text = corpus.batch(0, batch_size=4, seq_len=60, mix={"text": 1.0}, seed=0)
    specials = text[text < len(SPECIAL_IDS)]
    assert set(specials.tolist()) <= {SPECIAL_IDS[END_OF_TEXT]}


def test_too_short_a_split_is_named(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="seq_len"):
        corpus.batch(0, batch_size=1, seq_len=10**9, mix={"text": 1.0}, seed=0)


def test_bytes_per_token_add_up(corpus: Corpus) -> None:
    ids = corpus.tokens("test")[:500]
    assert corpus.token_bytes[ids].sum() == len(corpus.text("test", 500))
