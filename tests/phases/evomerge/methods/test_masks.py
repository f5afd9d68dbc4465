"""Random masks: the published generator, nothing but the key decides, and keep rates are what was asked for."""

import math

import numpy as np
import pytest
import torch

from phases.evomerge.errors import MergeError
from phases.evomerge.methods import MaskKey, merge
from phases.evomerge.methods.arrays import flat
from phases.evomerge.methods.masks import chance, draw, rank_chances, words

ZEROS = flat(torch.zeros(100_000))


def masks(key: MaskKey, models: int, density: float, elements: int = len(ZEROS)) -> np.ndarray:
    """Return (models, elements) of which is kept."""
    kept, _ = draw(key, (ZEROS[:elements],) * models, ZEROS[:elements], [chance(density)] * models)
    return np.stack([kept >> kept.dtype.type(model) & kept.dtype.type(1) for model in range(models)]).astype(bool)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    """The plain implementation below gives the generator's published answers (Random123, kat_vectors)."""
    assert philox(counter, key) == expected


def test_against_the_plain_implementation() -> None:
    key = MaskKey(7, "layers.3.weight").words(2)
    out = np.zeros((4, 50), np.uint32)
    words(2**33 + 5, *key, out)
    for j in range(50):
        counter = 2**33 + 5 + j
        assert out[:, j].tolist() == philox([counter & 0xFFFFFFFF, counter >> 32, 0, 0], [int(word) for word in key])


def philox(x: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10, as in the paper's section 3.3."""
    for _ in range(10):
        first, second = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(second >> 32) ^ x[1] ^ key[0], second & 0xFFFFFFFF, (first >> 32) ^ x[3] ^ key[1], first & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def test_nothing_but_the_key_decides() -> None:
    """The mask of a model is the same among more models and in a longer tensor, and another for any other key."""
    mask = masks(MaskKey(1, "a"), 1, 0.5)[0]
    assert np.array_equal(masks(MaskKey(1, "a"), 12, 0.5)[0], mask)
    assert np.array_equal(masks(MaskKey(1, "a"), 3, 0.5, 12_345)[0], mask[:12_345])
    for other in (
        masks(MaskKey(2, "a"), 1, 0.5)[0],
        masks(MaskKey(1, "b"), 1, 0.5)[0],
        masks(MaskKey(1, "a"), 2, 0.5)[1],
    ):
        assert abs((other == mask).mean() - 0.5) < 5 * 0.5 / math.sqrt(len(mask))


@pytest.mark.parametrize("density", [0.0, 0.001, 0.1, 0.5, 0.9, 1.0])
def test_keep_rate(density: float) -> None:
    kept = masks(MaskKey(3, "w"), 9, density)
    off = abs(kept.mean() - density)
    assert off <= 5 * math.sqrt(density * (1 - density) / kept.size)


@pytest.mark.parametrize("lag", [1, 128, 512, 1024])
def test_elements_are_independent(lag: int) -> None:
    """Neighbours, lanes of a counter, the two that share a word, and blocks."""
    kept = masks(MaskKey(4, "w"), 1, 0.3)[0]
    agree = (kept[lag:] & kept[:-lag]).mean()
    assert abs(agree - 0.09) < 5 * math.sqrt(0.09 * 0.91 / len(kept))


def test_l1_norms() -> None:
    generator = torch.Generator().manual_seed(0)
    base, model = torch.randn(5000, generator=generator), torch.randn(5000, generator=generator)
    kept, ((whole, part),) = draw(MaskKey(0, ""), (flat(model),), flat(base), [chance(0.4)])
    size = (model.double() - base.double()).abs()
    assert whole == pytest.approx(float(size.sum()), rel=1e-6)
    assert part == pytest.approx(float(size[torch.from_numpy(kept == 1)].sum()), rel=1e-6)


def test_chances_by_rank() -> None:
    """From density - epsilon for a row's smallest to density + epsilon for its largest, in equal steps."""
    delta = torch.tensor([[3.0, -1.0, 2.0], [0.0, -5.0, 4.0]])
    expected = torch.tensor([[0.7, 0.3, 0.5], [0.3, 0.7, 0.5]], dtype=torch.float64)
    for tensor, wanted in ((delta, expected), (delta.double(), expected), (delta[0], expected[0])):
        ours = rank_chances(tensor, 0.5, 0.2).reshape(tensor.shape) / 2**32
        np.testing.assert_allclose(ours, wanted.numpy(), atol=1e-9)
    three = torch.stack([delta.T, delta.T])  # rows are along dimension 1
    np.testing.assert_allclose(rank_chances(three, 0.5, 0.2).reshape(2, 3, 2)[1] / 2**32, expected.T.numpy(), atol=1e-9)
    assert rank_chances(torch.ones(4, 1), 0.5, 0.2).tolist() == [2**31] * 4


def test_rescaling_restores_the_l1_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(100, 100, generator=generator)
    model = base + 0.1 * torch.randn(100, 100, generator=generator)
    merged = merge("dare_linear", [model], base=base, weight=1.0, density=0.2, key=MaskKey(5, "w"))
    assert float((merged - base).abs().sum()) == pytest.approx(float((model - base).abs().sum()), rel=1e-5)


def test_too_many_models() -> None:
    with pytest.raises(MergeError, match="65 models: masks are drawn for at most 64"):
        merge("dare_linear", [torch.ones(3)] * 65, base=torch.zeros(3), weight=0.01)
