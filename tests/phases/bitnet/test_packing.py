"""Packed codes: round trips, and bytes against values worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.bitnet.packing import pack_bits, pack_trits, unpack_bits, unpack_trits
from phases.errors import ArtifactError

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 300))


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.sampled_from([(2, 1), (4, 7), (8, 127)]), st.integers(0, 99))
def test_bits_round_trip(shape: tuple[int, int], width: tuple[int, int], seed: int) -> None:
    bits, most = width
    codes = np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.int8)
    packed = pack_bits(codes, bits, 128)
    assert packed.shape == (shape[0], -(-shape[1] // 128), 16 * bits)
    assert np.array_equal(unpack_bits(torch.from_numpy(packed), bits, shape[1]), codes)


def test_two_bits_are_lowest_first_and_padded_with_zero_codes() -> None:
    packed = pack_bits(np.array([[-1, 0, 1, 1, -1]], np.int8), 2, 128)
    assert packed[0, 0, :2].tolist() == [0b11_11_10_01, 0b10_10_10_01]
    assert set(packed[0, 0, 2:].tolist()) == {0b10_10_10_10}


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(0, 99))
def test_trits_round_trip(shape: tuple[int, int], seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)
    data = pack_trits(codes)
    assert len(data) == -(-codes.size // 5)
    assert np.array_equal(unpack_trits(data, shape), codes)


def test_trits_by_hand_and_damage() -> None:
    assert pack_trits(np.array([1, -1, 0, 1, -1], np.int8)) == bytes([2 + 0 + 9 + 54 + 0])
    for damaged in (b"", b"\x00\x00", b"\xff"):
        with pytest.raises(ArtifactError, match="damaged"):
            unpack_trits(damaged, (5,))
