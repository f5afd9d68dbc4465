"""The documented calls: `create_bitnet_model`, `optimize_bitnet_model`, `validate_bitnet_performance`.

    model = create_bitnet_model({"model_size": "base", "optimization_profile": "production"})
    optimised, stats = optimize_bitnet_model(model, optimization_level="production")
    report = validate_bitnet_performance(optimised)["final_report"]["executive_summary"]

A size has random weights and is therefore never ready for production; `{"model": DIRECTORY}` starts from a trained one.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from tokenizers import Tokenizer

from phases.bitnet.config import QuantisationConfig
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.packed import pack, values
from phases.bitnet.quality import Tokens
from phases.bitnet.titan import BitTitan, to_bitnet
from phases.bitnet.validate import Check, check_packed, check_text, check_weights, nats_per_token, report
from phases.cognate.loading import load_model
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.corpus.config import CorpusConfig
from phases.corpus.sources import read_documents
from phases.corpus.tasks import split_of
from phases.corpus.tokenizer import encode
from phases.errors import ConfigError
from phases.seeds import child_seed
from phases.settings import Settings

Level = Literal["development", "production", "edge"]
LEVELS: dict[Level, QuantisationConfig] = {
    "development": QuantisationConfig(embedding="fp32"),
    "production": QuantisationConfig(embedding="int8"),
    "edge": QuantisationConfig(embedding="int4"),
}
SIZES = {"tiny": "nano", "base": "25m", "medium": "50m", "large": "100m", "xl": "1.5b"}
_STREAMS, _LENGTH = 8, 512  # tokens of held-out text for validation


class CreateConfig(Settings):
    """What `create_bitnet_model` takes."""

    model_size: Literal["tiny", "base", "medium", "large", "xl"] = "base"
    optimization_profile: Level = "production"
    model: str | None = Field(default=None, description="directory of a trained TinyTitan, in place of a size")
    seed: int = 0


@dataclass(frozen=True)
class BitNetModel:
    """A quantised network, with the tokenizer of what it was made of; None for random weights."""

    network: BitTitan
    tokenizer: Tokenizer | None


def create_bitnet_model(config: Mapping[str, Any]) -> BitNetModel:
    """Return a quantised model of a size, or of a model directory.

    Raises pydantic's `ValidationError` for an unknown key or value and `ArtifactError` for a damaged directory.
    """
    wanted = CreateConfig.model_validate(dict(config))
    quantisation = LEVELS[wanted.optimization_profile]
    if wanted.model is not None:
        loaded = load_model(wanted.model)
        return BitNetModel(to_bitnet(loaded.model, quantisation), loaded.tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(child_seed(wanted.seed, "bitnet", "initialisation"))
        return BitNetModel(to_bitnet(TinyTitan(PRESETS[SIZES[wanted.model_size]]).eval(), quantisation), None)


def optimize_bitnet_model(
    model: BitNetModel, optimization_level: str = "production"
) -> tuple[BitNetModel, dict[str, float]]:
    """Return the model with the formats of a level, and what the exported file is against full precision.

    Raises `ConfigError` for a level that does not exist.
    """
    if optimization_level not in LEVELS:
        fix = f"choose one of {', '.join(LEVELS)}"
        raise ConfigError.of("optimization_level", optimization_level, "no such level", fix)
    network = to_bitnet(model.network, LEVELS[optimization_level])
    packed = pack(network)
    with tempfile.TemporaryDirectory() as folder:
        size = write_onnx(packed, Path(folder) / "model.onnx")
    original = 4 * packed.parameters
    zeros = packed.zero_shares()
    stats = {
        "original_size_mb": original / 1e6,
        "compressed_size_mb": size / 1e6,
        "compression_ratio": original / size,
        "compression_ratio_to_fp16": original / 2 / size,
        "memory_reduction": 1 - size / original,
        "parameters": float(packed.parameters),
        "ternary_share": sum(values(packed.matrices[n]).numel() for n in zeros) / packed.parameters,
        "zero_share": sum(zeros.values()) / len(zeros),
    }
    return replace(model, network=network), stats


def validate_bitnet_performance(model: BitNetModel, rows: Tokens | None = None) -> dict[str, Any]:
    """Return the report; `["final_report"]["executive_summary"]["production_ready"]` is its verdict.

    `rows` (B, T + 1) are held-out tokens; without them, text of the standard library's test split is read with the
    model's own tokenizer.
    """
    tensors = dict(model.network.state_dict())
    checks, skipped = check_weights(tensors), list[str]()
    if not all(check.ok for check in checks):
        return report(checks, ["codes", "quality"], {})
    packed = pack(model.network)
    checks += check_packed(packed)
    measured: dict[str, Any] = {}
    if rows is None and model.tokenizer is not None:
        rows = held_out_rows(model.tokenizer)
    if rows is None:
        skipped.append("quality: the model has no tokenizer and no rows were given")
    else:
        text: list[Check] = check_text(nats_per_token(model.network, rows), rows)
        checks += text
        measured = {"bits_per_token": text[0].value, "unigram_bits_per_token": text[0].high}
    return report(checks, skipped, measured)


def held_out_rows(tokenizer: Tokenizer) -> Tokens:
    """Return (8, 512) tokens of the standard library's test split."""
    ids, wanted = list[int](), _STREAMS * _LENGTH
    for document in read_documents(CorpusConfig()):
        if split_of(document.key) == "test":
            ids += encode(tokenizer, document.text)
        if len(ids) >= wanted:
            break
    return np.array(ids[:wanted], np.int64).reshape(_STREAMS, -1)
