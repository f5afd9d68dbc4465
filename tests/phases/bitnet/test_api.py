"""The documented calls, and that the verdict on a model can be false for each reason there is."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from phases.bitnet.api import (
    BitNetModel,
    create_bitnet_model,
    held_out_rows,
    optimize_bitnet_model,
    validate_bitnet_performance,
)
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.quality import Tokens
from phases.bitnet.titan import to_bitnet
from phases.bitnet.validate import Check, unigram_bits
from phases.cognate.titan import TinyTitan
from phases.corpus.tokenizer import train_tokenizer
from phases.errors import ConfigError
from support.titans import small


def ready(model: BitNetModel, rows: Tokens | None) -> bool:
    verdict = validate_bitnet_performance(model, rows)["final_report"]["executive_summary"]["production_ready"]
    assert isinstance(verdict, bool)
    return verdict


def failed(model: BitNetModel, rows: Tokens | None) -> str:
    return " ".join(validate_bitnet_performance(model, rows)["final_report"]["executive_summary"]["failed"])


@pytest.fixture(scope="module")
def rows() -> Tokens:
    """Return text of a strict order: token n is followed by n + 7, in a circle of 200."""
    start = np.arange(0, 200, 25)[:, None]
    return (start + 7 * np.arange(40)) % 200 + 20


@pytest.fixture(scope="module")
def trained(rows: Tokens) -> BitNetModel:
    """Return a quantised model that has learned the order."""
    network = to_bitnet(small(), QuantisationConfig())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    for _ in range(60):
        network.loss(torch.from_numpy(rows))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return BitNetModel(network.eval(), None)


def test_a_sound_trained_model_is_ready(trained: BitNetModel, rows: Tokens) -> None:
    assert ready(trained, rows)


def test_random_weights_are_not(rows: Tokens) -> None:
    model = create_bitnet_model({"model_size": "tiny", "optimization_profile": "production"})
    assert not ready(model, None)  # nothing to measure it on
    assert not ready(model, rows)
    assert "bits per token" in failed(model, rows)


def zeroed(model: TinyTitan) -> None:
    model.blocks[1].down.weight.zero_()


def broken(model: TinyTitan) -> None:
    model.blocks[0].qkv.weight[0, 0] = torch.nan


def dead_rows(model: TinyTitan) -> None:
    model.blocks[0].gate_up.weight[:40] = 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(zeroed, "share of zeros"), (broken, "not finite"), (dead_rows, "dead rows")],
)
def test_damage_is_named(trained: BitNetModel, rows: Tokens, damage: Callable[[TinyTitan], None], reason: str) -> None:
    network = copy.deepcopy(trained.network)
    with torch.no_grad():
        damage(network)
    model = BitNetModel(network, None)
    assert not ready(model, rows)
    assert reason in failed(model, rows)


def test_optimising_gives_what_the_file_really_is(trained: BitNetModel) -> None:
    sizes = {}
    for level in ("development", "production", "edge"):
        optimised, stats = optimize_bitnet_model(trained, optimization_level=level)
        assert type(optimised) is BitNetModel
        assert stats["compression_ratio"] == pytest.approx(stats["original_size_mb"] / stats["compressed_size_mb"])
        assert stats["original_size_mb"] == pytest.approx(4e-6 * sum(p.numel() for p in trained.network.parameters()))
        assert 0.15 < stats["zero_share"] < 0.6
        sizes[level] = stats["compressed_size_mb"]
    assert sizes["edge"] < sizes["production"] < sizes["development"]


def test_unknown_words_are_errors(trained: BitNetModel) -> None:
    with pytest.raises(ConfigError, match="choose one of"):
        optimize_bitnet_model(trained, optimization_level="maximum")
    for config in ({"model_size": "huge"}, {"model_size": "base", "speed": 9}):
        with pytest.raises(ValidationError):
            create_bitnet_model(config)


def test_a_check_of_nan_fails_and_unigram_entropy_is_exact() -> None:
    assert not Check("x", float("nan")).ok
    assert unigram_bits(np.array([[0, 1, 2, 3], [0, 1, 2, 3]])) == pytest.approx(2)


def test_held_out_rows_are_the_tokenizers() -> None:
    tokenizer = train_tokenizer(["def f(x): return x"] * 3, 300)
    found = held_out_rows(tokenizer)
    assert found.shape == (8, 512)
    assert 0 <= found.min() <= found.max() < 300
