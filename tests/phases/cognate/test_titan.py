"""TinyTitan: the documented sizes, and one computation whether whole or in pieces, halting and memory included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.cognate.memory import MemoryConfig
from phases.cognate.presets import NOMINAL, PRESETS
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.errors import ConfigError


def tiny(**changes: object) -> TitanConfig:
    values = {"vocab_size": 280, "d_model": 24, "n_layers": 2, "n_heads": 2, "hidden": 32, "tied": True}
    values |= {
        "segment_len": 8,
        "train_ponder_steps": 3,
        "halt_threshold": 0.7,
        "memory": MemoryConfig(hidden=16, capacity=12, chunk=4, duplicate=0.95),
    }
    return TitanConfig.model_validate(values | changes)


def model_of(config: TitanConfig, seed: int = 0) -> TinyTitan:
    """A model whose tokens halt after different numbers of steps."""
    torch.manual_seed(seed)
    model = TinyTitan(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        torch.manual_seed(seed + 5)
        model.halting.linear.weight.normal_()
        model.halting.linear.bias.fill_(0.0)
    return model


def test_the_25m_preset_has_exactly_the_documented_number_of_parameters() -> None:
    config = PRESETS["25m"]
    assert (config.d_model, config.n_layers, config.n_heads, config.vocab_size) == (216, 11, 4, 32_000)
    with torch.device("meta"):
        assert sum(p.numel() for p in TinyTitan(config).parameters()) == 25_069_534


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_within_two_percent_of_its_name(name: str) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in TinyTitan(PRESETS[name]).parameters())
    assert abs(count / NOMINAL[name] - 1) < 0.02


def test_variants_share_their_shapes() -> None:
    def shapes(capacity: int, threshold: float) -> dict[str, torch.Size]:
        config = tiny(halt_threshold=threshold, memory=MemoryConfig(hidden=16, capacity=capacity))
        return {name: tensor.shape for name, tensor in TinyTitan(config).state_dict().items()}

    assert shapes(4096, 0.95) == shapes(8192, 0.90)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 3), st.integers(1, 11), st.sampled_from([1, 2, 3]))
def test_cached_and_uncached_logits_agree(seed: int, length: int, batch: int, piece: int, layers: int) -> None:
    model = model_of(tiny(n_layers=layers), seed)
    tokens = torch.randint(16, 280, (batch, length), generator=torch.Generator().manual_seed(seed))
    whole, _ = model(tokens)
    for size in (1, piece):
        state, parts = None, []
        for start in range(0, length, size):
            logits, state = model(tokens[:, start : start + size], state)
            parts.append(logits)
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)


def test_the_comparison_covers_halting_and_memory() -> None:
    model = model_of(tiny())
    tokens = torch.randint(16, 280, (3, 40), generator=torch.Generator().manual_seed(0))
    reading = model.read(tokens)
    assert set(reading.steps.unique().tolist()) == {1, 2, 3}
    assert reading.state.memory.valid.any()
    assert reading.hits.sum() > 0


def test_evaluation_is_the_log_probability_of_the_logits() -> None:
    model = model_of(tiny())
    rows = torch.randint(16, 280, (2, 30), generator=torch.Generator().manual_seed(1))
    logits, _ = model(rows[:, :-1])
    expected = -torch.log_softmax(logits, -1).gather(-1, rows[:, 1:, None]).squeeze(-1)
    assert torch.allclose(model.evaluate(rows).nll, expected, atol=1e-4)


def test_the_future_does_not_leak() -> None:
    model = model_of(tiny())
    tokens = torch.randint(16, 280, (1, 30), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 17] += 1
    before, after = model(tokens)[0], model(changed)[0]
    assert torch.allclose(before[:, :17], after[:, :17], atol=1e-5)
    assert not torch.allclose(before[:, 17:], after[:, 17:], atol=1e-3)


def test_halted_tokens_are_not_computed() -> None:
    model = model_of(tiny())
    rows: list[int] = []
    block = model.blocks[0]
    original = block.mix

    def counted(x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[:-1].numel())
        mixed: torch.Tensor = original(x, attended)
        return mixed

    block.mix = counted  # type: ignore[method-assign]
    tokens = torch.randint(16, 280, (4, 8), generator=torch.Generator().manual_seed(3))
    steps = model.read(tokens).steps
    assert sum(rows) == int(steps.sum())


def test_every_parameter_learns() -> None:
    model = model_of(tiny(max_ponder_steps=3)).train()
    loss, metrics = model.loss(torch.randint(16, 280, (2, 33), generator=torch.Generator().manual_seed(4)))
    loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()} == set()
    assert {"cross_entropy", "ponder_steps", "memory_hit_rate"} <= set(metrics)


@pytest.mark.parametrize("changes", [{"d_model": 25}, {"segment_len": 6}, {"train_ponder_steps": 9}])
def test_impossible_sizes_are_named(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        tiny(**changes)
