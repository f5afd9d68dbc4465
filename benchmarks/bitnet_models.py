"""Random models for the BitNet benchmark: what is timed and weighed does not depend on what they have learned."""

from typing import Literal

import torch
from torch import Tensor

from phases.bitnet.config import QuantisationConfig
from phases.bitnet.packed import Architecture, Matrix, PackedModel, pack
from phases.bitnet.rows import quantise_rows
from phases.bitnet.ternary import ternarise
from phases.bitnet.titan import to_bitnet
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan

Embedding = Literal["fp32", "int8", "int4"]
Format = Literal["fp32", "ternary int8", "ternary int4", "4-bit"]
SHAPES = {"25m": (216, 11, 4, 2256), "42m": (512, 8, 8, 1408), "110m": (768, 12, 12, 2048)}
SHAPES |= {"llama": (512, 8, 8, 1536)}  # all widths are multiples of 256, which GGUF's ternary blocks need
_VOCABULARY, _TIED_HIDDEN = 32_000, 2157


def decoder(size: str, form: Format) -> PackedModel:
    """Return a plain tied decoder of a size in `SHAPES`; its parameters are random and the same in every format."""
    d_model, n_layers, n_heads, hidden = SHAPES[size]
    generator = torch.Generator().manual_seed(0)
    shapes = {"qkv": (3 * d_model, d_model), "out": (d_model, d_model)}
    shapes |= {"gate_up": (2 * hidden, d_model), "down": (d_model, hidden)}
    embedding = torch.randn(_VOCABULARY, d_model, generator=generator) * 0.02
    matrices, vectors = {"embedding.weight": _rows(embedding, form)}, {"norm.weight": torch.ones(d_model)}
    for layer in range(n_layers):
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator) * shape[1] ** -0.5
            matrices[f"blocks.{layer}.{name}.weight"] = _block(weight, form)
        vectors |= {f"blocks.{layer}.{name}.weight": torch.ones(d_model) for name in ("attention_norm", "mlp_norm")}
    architecture = Architecture(
        vocab_size=_VOCABULARY,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        hidden=hidden,
        eps=1e-6,
        rope_theta=10_000.0,
        tied=True,
        activations="block",
        quantised_head=form != "fp32",
    )
    return PackedModel(architecture, matrices, vectors)


def titan_25m(tied: bool, embedding: Embedding) -> PackedModel:
    """Return a TinyTitan of 25M parameters, in full precision or quantised with an embedding of so many bits: the
    preset, or its width and depth with a tied embedding.

    The preset has 25,069,534 parameters, of which embedding and head are 13.8M; tied, the MLPs are wider instead.
    """
    preset = PRESETS["25m"]
    config = preset.model_copy(update={"tied": True, "hidden": _TIED_HIDDEN}) if tied else preset
    torch.manual_seed(0)
    model = TinyTitan(config)
    return pack(model if embedding == "fp32" else to_bitnet(model, QuantisationConfig(embedding=embedding)))


def _rows(weight: Tensor, form: Format) -> Matrix:
    return weight if form == "fp32" else quantise_rows(weight, 8 if form == "ternary int8" else 4)


def _block(weight: Tensor, form: Format) -> Matrix:
    if form == "fp32":
        return weight
    return quantise_rows(weight, 4) if form == "4-bit" else ternarise(weight)
