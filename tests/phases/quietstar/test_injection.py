"""Places to think at: scores that mean what they say, and controls."""

import math
from collections.abc import Callable

import torch

from phases.cognate.titan import TinyTitan
from phases.quietstar.injection import WatchedWindow, choose, entropies, lengths_for

ModelOf = Callable[..., TinyTitan]


def test_entropies_are_those_of_the_predictions() -> None:
    outputs, head = torch.randn(2, 3, 4), torch.randn(9, 4)
    expected = torch.distributions.Categorical(logits=outputs @ head.T).entropy()
    assert torch.allclose(entropies(outputs, head), expected, atol=1e-5)


def test_the_highest_scores_are_chosen_in_order_of_place() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.8], [0.7, 0.1, 0.6, 0.0]])
    assert choose(scores, 0.5, "entropy").tolist() == [[1, 3], [0, 2]]
    assert choose(scores, 0.01, "entropy").tolist() == [[1], [0]]
    assert choose(scores, 0.5, "matched").tolist() == [[0, 2], [1, 3]]  # the other row's
    assert choose(scores, 0.5, "all").tolist() == [[0, 1, 2, 3]] * 2


def test_random_places_are_all_equally_likely() -> None:
    torch.manual_seed(0)
    found = choose(torch.arange(8.0).expand(4000, -1), 0.25, "random")
    assert torch.allclose(torch.bincount(found.flatten(), minlength=8) / 8000, torch.full((8,), 1 / 8), atol=0.02)


def test_thoughts_are_longer_where_predictions_are_less_certain() -> None:
    assert lengths_for(torch.tensor([0.0, math.log(100) / 2, math.log(100)]), 16, 64, 100).tolist() == [16, 40, 64]


def test_the_width_of_attention_is_its_entropy(model_of: ModelOf) -> None:
    """The first token sees itself alone; where all keys are equal, the n-th sees n tokens alike."""
    model = model_of()
    with torch.no_grad():
        for block in model.blocks:
            block.qkv.weight[:48].zero_()  # queries and keys
    window = WatchedWindow(1)
    segments = model.segments(torch.randint(16, 280, (2, 13)), window)
    next(segments)
    assert torch.allclose(window.noted[0, :, 0], torch.arange(1.0, 9).log(), atol=1e-5)
    next(segments)
    assert torch.allclose(window.noted[1, :, 0], torch.arange(9.0, 13).log(), atol=1e-5)
