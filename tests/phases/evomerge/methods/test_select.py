"""Exactly the k largest, whatever the order and however many are equal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.evomerge.methods.select import EVERYTHING, NOTHING, Cut, segments, top


def taken(cut: Cut, magnitudes: np.ndarray) -> np.ndarray:
    """Return which magnitudes a cut takes."""
    mask = np.zeros(len(magnitudes), bool)
    for start, stop, (least,) in segments([cut], magnitudes):
        mask[start:stop] = magnitudes[start:stop] >= least
    return mask


def reference(magnitudes: np.ndarray, keep: int) -> np.ndarray:
    """Return the same by a stable sort."""
    mask = np.zeros(len(magnitudes), bool)
    mask[np.argsort(-magnitudes, kind="stable")[:keep]] = True
    return mask


LARGE = 100_003
ORDERS = {
    "random": lambda rng: rng.standard_normal(LARGE),
    "rising": lambda rng: np.sort(rng.standard_normal(LARGE)),
    "constant": lambda rng: np.full(LARGE, 0.25),
    "few values": lambda rng: rng.integers(-3, 4, LARGE),
    "as from bfloat16": lambda rng: np.round(rng.standard_normal(LARGE), 2),
    "hidden from the sample": lambda rng: np.where(np.arange(LARGE) % 47 == 0, 0.0, rng.standard_normal(LARGE)),
    "mostly zero": lambda rng: np.where(rng.random(LARGE) < 0.99, 0.0, rng.standard_normal(LARGE)),
    "denormal": lambda rng: rng.standard_normal(LARGE) * 1e-42,
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large(order: str, dtype: type) -> None:
    values = ORDERS[order](np.random.default_rng(0)).astype(dtype)
    keeps = [0, 1, 2, LARGE // 100, LARGE // 3, LARGE // 2, LARGE - 1, LARGE]
    values.flags.writeable = False
    for keep, cut in zip(keeps, top([values] * len(keeps), None, keeps), strict=True):
        assert np.array_equal(taken(cut, np.abs(values)), reference(np.abs(values), keep)), keep


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=60), st.integers(0, 60), st.integers(0, 5))
def test_small_from_an_origin(numbers: list[int], keep: int, origin: int) -> None:
    values = np.asarray(numbers, np.float32)
    zero = np.full_like(values, origin)
    (cut,) = top([values], zero, [keep])
    assert np.array_equal(taken(cut, np.abs(values - zero)), reference(np.abs(values - zero), keep))


def test_all_or_nothing() -> None:
    values = np.ones(5, np.float32)
    assert top([values, values], None, [5, 0]) == [EVERYTHING, NOTHING]
    assert taken(EVERYTHING, values).all()
    assert not taken(NOTHING, values).any()
