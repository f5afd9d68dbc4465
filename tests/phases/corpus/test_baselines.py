"""The baselines against direct computations."""

import math
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.corpus.baselines import ngram_bits_per_byte, unigram_bits_per_byte, xz_bits_per_byte

texts = st.binary(min_size=6, max_size=60)


def witten_bell(train: bytes, text: bytes, order: int) -> float:
    """The same model, one byte at a time."""

    def probability(history: bytes, byte: int, n: int) -> float:
        if n == 0:
            return 1 / 256
        context = history[len(history) - n + 1 :] if n > 1 else b""
        followers = Counter(train[i + n - 1] for i in range(len(train) - n + 1) if train[i : i + n - 1] == context)
        lower = probability(history, byte, n - 1)
        total, kinds = sum(followers.values()), len(followers)
        return (followers[byte] + kinds * lower) / (total + kinds) if total else lower

    bits = [-math.log2(probability(text[:i], text[i], min(order, i + 1))) for i in range(len(text))]
    return sum(bits) / len(bits)


@settings(max_examples=25, deadline=None)
@given(texts, texts, st.integers(1, 4))
def test_ngrams_are_witten_bell(train: bytes, text: bytes, order: int) -> None:
    assert math.isclose(ngram_bits_per_byte(train, text, order), witten_bell(train, text, order), rel_tol=1e-9)


def test_random_bytes_cost_eight_bits() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 1 << 16, dtype=np.uint8).tobytes()
    assert abs(unigram_bits_per_byte(noise, noise[: 1 << 14]) - 8) < 0.02
    assert abs(xz_bits_per_byte(noise) - 8) < 0.02


def test_longer_contexts_help_on_text() -> None:
    text = b"the cat sat on the mat and the dog sat on the cat. " * 40
    costs = [ngram_bits_per_byte(text, text[:500], order) for order in (1, 2, 3, 5)]
    assert costs == sorted(costs, reverse=True)
