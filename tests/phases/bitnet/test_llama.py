"""LLaMA-like directories against Hugging Face's own implementation, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from phases.bitnet.config import QuantisationConfig
from phases.bitnet.llama import is_llama, read_llama
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import values
from phases.bitnet.ternary import TernaryTensor
from phases.errors import ArtifactError, ConfigError
from support.llama import SHAPE, write_llama


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("qwen2", True)])
def test_full_precision_file_agrees_with_hugging_face(tmp_path: Path, kind: str, tied: bool) -> None:
    model = write_llama(tmp_path, kind, tied)
    tokens = torch.randint(0, 200, (1, 300), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(tokens).logits[0].numpy()
    write_onnx(read_llama(tmp_path, None), tmp_path / "model.onnx")
    stream = OnnxModel(tmp_path / "model.onnx").stream()
    parts = [stream.read(tokens[0, :250].tolist()), *(stream.read([t]) for t in tokens[0, 250:].tolist())]
    found = np.concatenate([part.logits for part in parts])
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_quantised_file_is_ternary_and_near(tmp_path: Path) -> None:
    write_llama(tmp_path, "llama", False)
    assert is_llama(tmp_path)
    packed = read_llama(tmp_path, QuantisationConfig())
    plain = read_llama(tmp_path, None)
    blocks = {name: m for name, m in packed.matrices.items() if name.startswith("blocks.")}
    assert len(blocks) == 8
    assert all(isinstance(matrix, TernaryTensor) for matrix in blocks.values())
    assert packed.parameters == plain.parameters == sum(values(m).numel() for m in packed.matrices.values()) + 240
    size = write_onnx(packed, tmp_path / "q.onnx")
    assert size < 0.6 * write_onnx(plain, tmp_path / "p.onnx")
    logits = OnnxModel(tmp_path / "q.onnx").stream().read([1, 2, 3]).logits
    assert logits.shape == (3, 200)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "gelu"), ("model_type", "gpt2"), ("sliding_window", 128), ("rope_scaling", {"rope_type": "yarn"})],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    config = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-6, **SHAPE, field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="rope_type" if field == "rope_scaling" else field):
        read_llama(tmp_path, QuantisationConfig())


def test_missing_and_broken_weights_are_named(tmp_path: Path) -> None:
    config = {"model_type": "llama", "rms_norm_eps": 1e-6, **SHAPE}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        read_llama(tmp_path, QuantisationConfig())
    write_llama(tmp_path, "llama", False)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"layers\.1\.mlp\.up_proj"):
        read_llama(tmp_path, QuantisationConfig())
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"model\.norm\.weight is missing"):
        read_llama(tmp_path, QuantisationConfig())
