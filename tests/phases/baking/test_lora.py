"""Adapters: nothing at first, the dial is linear in the weights, merging changes nothing that is computed."""

import copy

import pytest
import torch
from torch import Tensor

from phases.baking.lora import Adapted, LoRAConfig
from phases.cognate.titan import TinyTitan
from phases.errors import ArtifactError


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(16, 512, (2, 20), generator=torch.Generator().manual_seed(1))


def _adapted(titan: TinyTitan, *, trained: bool) -> Adapted:
    adapted = Adapted(titan, LoRAConfig(rank=4, alpha=8), torch.Generator().manual_seed(0))
    if trained:
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if name.endswith("_b"):
                    parameter.normal_(std=0.1)
    return adapted


def test_fresh_adapters_change_nothing(titan: TinyTitan, tokens: Tensor) -> None:
    before, _ = titan(tokens)
    after, _ = _adapted(titan, trained=False).model(tokens)
    assert torch.equal(before, after)


def test_strength_zero_is_the_model_as_it_was_and_the_dial_returns(titan: TinyTitan, tokens: Tensor) -> None:
    before, _ = titan(tokens)
    adapted = _adapted(titan, trained=True)
    baked, _ = adapted.model(tokens)
    with adapted.at(0.0) as teacher:
        assert torch.equal(before, teacher(tokens)[0])
    assert torch.equal(adapted.model(tokens)[0], baked)
    assert (baked - before).abs().max() > 0.1


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5])
def test_merging_computes_the_same_with_plain_weights(titan: TinyTitan, tokens: Tensor, strength: float) -> None:
    adapted = _adapted(titan, trained=True)
    plain = adapted.plain(strength)
    assert plain.state_dict().keys() == TinyTitan(titan.config).state_dict().keys()
    with adapted.at(strength) as model:
        assert torch.allclose(model(tokens)[0], plain(tokens)[0], atol=2e-4)


def test_the_dial_is_linear_in_the_weights(titan: TinyTitan) -> None:
    adapted = _adapted(titan, trained=True)
    none, half, whole = (adapted.merged(s)["blocks.0.qkv.weight"] for s in (0.0, 0.5, 1.0))
    assert torch.allclose(half - none, (whole - none) / 2, atol=1e-7)
    assert torch.equal(adapted.merged(1.0)["embedding.weight"], adapted.merged(0.0)["embedding.weight"])


def test_only_adapters_are_parameters(titan: TinyTitan) -> None:
    adapted = _adapted(titan, trained=False)
    assert {name.split(".")[0] for name, _ in adapted.named_parameters()} == {"adapters"}
    assert not any(parameter.requires_grad for name, parameter in titan.named_parameters() if "base" in name)


def test_a_merge_that_is_not_finite_is_refused(titan: TinyTitan) -> None:
    adapted = _adapted(copy.deepcopy(titan), trained=True)
    with torch.no_grad():
        next(iter(adapted.adapters.values())).fill_(float("nan"))
    with pytest.raises(ArtifactError, match="not finite"):
        adapted.merged()
