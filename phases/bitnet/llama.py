"""LLaMA-like safetensors directories as packed models: read, renamed, and quantised after training.

There is no training here, so bits per byte suffer; a TinyTitan is better taken through phase 4. What a runtime of ours
cannot compute (another activation, scaled rotary positions, sliding windows, experts) is refused by name.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from phases.bitnet.config import QuantisationConfig
from phases.bitnet.linear import WeightQuantiser
from phases.bitnet.packed import Architecture, Matrix, PackedModel
from phases.bitnet.rows import quantise_rows
from phases.bitnet.ternary import ternarise
from phases.errors import ArtifactError, ConfigError

MODEL_TYPES = ("llama", "mistral", "qwen2")
_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def is_llama(folder: Path) -> bool:
    """Say whether a directory holds a model of one of the types that can be read here."""
    config = folder / "config.json"
    return config.exists() and json.loads(config.read_text()).get("model_type") in MODEL_TYPES


def read_llama(folder: Path, quantisation: QuantisationConfig | None) -> PackedModel:
    """Return the model of a directory, in full precision where `quantisation` is None.

    Raises `ConfigError` naming what cannot be run and `ArtifactError` for files that are missing or damaged.
    """
    architecture = read_architecture(folder, quantisation)
    weights = _Weights(folder)
    matrices, vectors = dict[str, Matrix](), {"norm.weight": weights.get("model.norm.weight")}
    blocks, rows = _quantisers(quantisation)
    matrices["embedding.weight"] = rows(weights.get("model.embed_tokens.weight"))
    if not architecture.tied:
        matrices["head.weight"] = rows(weights.get("lm_head.weight"))
    for layer in range(architecture.n_layers):
        source, target = f"model.layers.{layer}", f"blocks.{layer}"
        for name, parts in _PARTS.items():
            fused = torch.cat([weights.get(f"{source}.{part}.weight") for part in parts])
            matrices[f"{target}.{name}.weight"] = blocks(fused)
            biases = [weights.find(f"{source}.{part}.bias") for part in parts]
            if all(bias is not None for bias in biases):
                vectors[f"{target}.{name}.bias"] = torch.cat([bias for bias in biases if bias is not None])
        for name, norm in _NORMS.items():
            vectors[f"{target}.{name}.weight"] = weights.get(f"{source}.{norm}.weight")
    return PackedModel(architecture, matrices, vectors)


def read_architecture(folder: Path, quantisation: QuantisationConfig | None) -> Architecture:
    """Return what `config.json` describes. Raises `ConfigError` naming a field that cannot be run."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / 'config.json'}: missing or not JSON ({error})") from error
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    refused = {
        "model_type": config.get("model_type") not in MODEL_TYPES,
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "rope_type": rope.get("rope_type", rope.get("type", "default")) != "default",
        "sliding_window": window is not None,
    }
    for field in (field for field, is_refused in refused.items() if is_refused):
        value = config.get(field, rope.get(field))
        raise ConfigError.of(field, value, "is not supported", f"use a plain decoder of type {', '.join(MODEL_TYPES)}")
    heads = int(config["num_attention_heads"])
    return Architecture(
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        hidden=config["intermediate_size"],
        eps=config["rms_norm_eps"],
        rope_theta=rope.get("rope_theta") or config.get("rope_theta", 10_000.0),
        tied=bool(config.get("tie_word_embeddings", False)),
        activations=quantisation.activations if quantisation else "block",
        quantised_head=quantisation is not None and quantisation.embedding != "fp32",
    )


def _quantisers(quantisation: QuantisationConfig | None) -> tuple[Any, Any]:
    """Return what is done to the matrices of blocks, and to embedding and head."""
    if quantisation is None:
        return _as_is, _as_is
    blocks: WeightQuantiser = partial(ternarise, method=quantisation.method, layout=quantisation.layout)
    if quantisation.embedding == "fp32":
        return blocks, _as_is
    return blocks, partial(quantise_rows, bits=8 if quantisation.embedding == "int8" else 4)


def _as_is(weight: Tensor) -> Tensor:
    return weight


class _Weights:
    """Tensors by name, read one at a time from one file or several."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if (folder / _INDEX).exists():
            self._files: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
            return
        try:
            with safe_open(folder / _WEIGHTS, "pt") as file:
                self._files = dict.fromkeys(file.keys(), _WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{folder / _WEIGHTS}: missing or not a safetensors file ({error})") from error

    def find(self, name: str) -> Tensor | None:
        """Return a tensor in fp32, or None where there is none of that name."""
        if name not in self._files:
            return None
        path = self._folder / self._files[name]
        try:
            with safe_open(path, "pt") as file:
                tensor: Tensor = file.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: missing or not a safetensors file ({error})") from error
        return tensor

    def get(self, name: str) -> Tensor:
        """Return a tensor in fp32. Raises `ArtifactError` naming one that is missing or not finite."""
        tensor = self.find(name)
        if tensor is None:
            raise ArtifactError(f"{self._folder}: the weight {name} is missing")
        if not tensor.isfinite().all():
            raise ArtifactError(f"{self._folder}: {name} has values that are not finite; quantise a sound model")
        return tensor
