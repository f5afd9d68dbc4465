"""Layers, heads and embeddings by name, for the naming schemes that are about."""

import pytest

from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.evomerge import layers


def names(prefix: str, depth: int, *ends: str) -> list[str]:
    inner = [f"{prefix}{n}.{part}.weight" for n in range(depth) for part in ("attn.q", "mlp.up", "norm")]
    return [*ends, *inner]


@pytest.mark.parametrize("prefix", ["model.layers.", "transformer.h.", "h.", "gpt_neox.layers."])
def test_stacks_of_common_schemes(prefix: str) -> None:
    found = layers.find_stacks(names(prefix, 12, "model.embed_tokens.weight", "lm_head.weight"))
    assert found == ((prefix,), 12)
    assert found.place(f"{prefix}11.mlp.up.weight") == (prefix, 11, ".mlp.up.weight")
    assert found.place("lm_head.weight") is None


def test_stack_of_our_own_models() -> None:
    found = layers.find_stacks(TinyTitan(PRESETS["nano"]).state_dict())
    assert found == (("blocks.",), PRESETS["nano"].n_layers)
    assert found.place("memory.mlp.0.weight") is None


def test_experts_count_in_their_layer() -> None:
    moe = [f"model.layers.{n}.experts.{e}.w1.weight" for n in range(2) for e in range(8)]
    assert layers.find_stacks(moe) == (("model.layers.",), 2)


def test_encoder_and_decoder_are_two_stacks() -> None:
    both = names("encoder.block.", 4) + names("decoder.block.", 4) + names("decoder.block.", 0)
    assert layers.find_stacks(both) == (("encoder.block.", "decoder.block."), 4)


def test_small_or_gappy_numbering_is_no_stack() -> None:
    assert layers.find_stacks([*names("h.", 3), "probe.0.weight", "probe.1.weight", "probe.2.weight"]).prefixes == (
        "h.",
    )
    assert layers.find_stacks(["mlp.0.weight", "mlp.2.weight"]) == ((), 0)


@pytest.mark.parametrize(
    ("name", "head", "tokens", "first"),
    [
        ("lm_head.weight", True, False, False),
        ("embed_out.weight", True, False, False),
        ("head.weight", True, False, False),
        ("model.embed_tokens.weight", False, True, True),
        ("transformer.wte.weight", False, True, True),
        ("transformer.wpe.weight", False, False, True),
        ("step_embedding", False, False, True),
        ("model.norm.weight", False, False, False),
        ("head.bias", False, False, False),
    ],
)
def test_ends_of_the_model(name: str, head: bool, tokens: bool, first: bool) -> None:
    assert (layers.is_head(name), layers.is_token_embedding(name), layers.comes_first(name)) == (head, tokens, first)
