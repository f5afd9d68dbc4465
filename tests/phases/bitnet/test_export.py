"""`quantise_directory`: each format from a model directory, and sources that are none."""

from pathlib import Path

import pytest

from phases import modeldir
from phases.bitnet.archive import from_bytes
from phases.bitnet.export import NAMES, Format, quantise_directory
from phases.bitnet.onnx_runtime import OnnxModel
from phases.cognate.loading import model_config
from phases.cognate.titan import TinyTitan
from phases.corpus.tokenizer import train_tokenizer
from phases.errors import ArtifactError, ConfigError


@pytest.fixture
def source(tmp_path: Path, titan: TinyTitan) -> str:
    out = str(tmp_path / "model")
    modeldir.save_model(
        out,
        tensors=titan.state_dict(),
        config=model_config(titan.config),
        tokenizer=train_tokenizer(["some words"], 300).to_str(),
        lineage=modeldir.Lineage(phase="cognate", seed=0),
    )
    return out


@pytest.mark.parametrize("form", ["onnx", "torch", "archive"])
def test_each_format_can_be_opened_again(source: str, tmp_path: Path, form: Format) -> None:
    path = quantise_directory(source, str(tmp_path / "out"), form)
    assert path == tmp_path / "out" / NAMES[form]
    assert (tmp_path / "out" / "tokenizer.json").exists()
    if form == "onnx":
        assert OnnxModel(path).stream().read([20, 30]).logits.shape == (2, 300)
    else:
        assert from_bytes(path.read_bytes()).architecture.d_model == 24


def test_exact_files_say_so(source: str, tmp_path: Path) -> None:
    model = OnnxModel(quantise_directory(source, str(tmp_path / "out"), exact=True))
    assert model.exact
    assert model.architecture.activations == "per_token"


def test_refusals(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ponder"):
        quantise_directory(source, str(tmp_path / "out"), "gguf")
    with pytest.raises(ArtifactError, match="neither"):
        quantise_directory(str(tmp_path), str(tmp_path / "out"))
