"""A TinyTitan's directory as something to optimise: the whole model in one file, its ponder loop included."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from phases import modeldir
from phases.baking.optimise.quality import agreement, outputs
from phases.baking.optimise.session import SessionSettings, node_counts, open_session
from phases.baking.optimise.sources import Source, open_source
from phases.baking.optimise.titan_runtime import OnnxTitan
from phases.baking.optimise.transforms import weights_8bit
from phases.cognate.loading import model_config
from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError


@pytest.fixture
def directory(titan: TinyTitan, tokenizer: Tokenizer, tmp_path: Path) -> str:
    uri = str(tmp_path / "model")
    lineage = modeldir.Lineage(phase="cognate", seed=0)
    config = model_config(titan.config)
    modeldir.save_model(uri, tensors=titan.state_dict(), config=config, tokenizer=tokenizer.to_str(), lineage=lineage)
    return uri


@pytest.fixture
def source(directory: str, tmp_path: Path) -> Source:
    return open_source(directory, tmp_path, inputs=None, sizes={"T": 8}, count=3)


def test_the_file_is_the_whole_model_and_reads_what_torch_reads(source: Source) -> None:
    assert node_counts(source.file)["Loop"] == 1
    assert source.eager is not None
    session = open_session(source.file, SessionSettings(level="off"))
    for feeds in [*source.inputs.calibration, *source.inputs.evaluation]:
        assert feeds["tokens"].shape == (1, 8)
        (logits,) = session.run(["logits"], feeds)
        wanted = source.eager(feeds)
        assert isinstance(wanted, torch.Tensor)
        np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-3)


def test_calibration_and_evaluation_share_no_text(source: Source) -> None:
    texts = [tuple(f["tokens"][0]) for f in [*source.inputs.calibration, *source.inputs.evaluation]]
    assert len(set(texts)) == 6


def test_a_model_is_exported_once_to_a_folder_and_others_beside_it(
    directory: str, source: Source, tmp_path: Path
) -> None:
    before = source.file.stat().st_mtime_ns
    again = open_source(directory, tmp_path, inputs=None, sizes={"T": 4}, count=1)
    assert again.file == source.file
    assert again.file.stat().st_mtime_ns == before
    tensors = {name: 2 * tensor for name, tensor in modeldir.load_tensors(directory).items()}
    other, lineage = str(tmp_path / "other"), modeldir.load_lineage(directory)
    modeldir.save_model(
        other,
        tensors=tensors,
        config=modeldir.load_model_config(directory),
        tokenizer=modeldir.load_tokenizer_json(directory),
        lineage=lineage,
    )
    assert open_source(other, tmp_path, inputs=None, sizes={"T": 4}, count=1).file != source.file


def test_weights_inside_the_loop_are_stored_in_8_bits_and_text_is_read_on(source: Source, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    weights_8bit(source.file, small, source.inputs.calibration)
    counts = node_counts(small)
    assert counts["MatMulNBits"] >= 9  # of two blocks, the memory and the head
    feeds = source.inputs.evaluation
    ours, theirs = (outputs(open_session(file, SessionSettings()), feeds) for file in (small, source.file))
    assert agreement(theirs, ours).smallest > 0.99
    assert small.stat().st_size < 0.8 * source.file.stat().st_size
    texts = np.arange(16, 16 + 200).reshape(1, 200)  # over the end of a segment, where memory is written
    whole, parts = OnnxTitan(small).stream(), OnnxTitan(small).stream()
    wanted = whole.read(texts).logits
    found = np.concatenate([parts.read(part).logits for part in np.split(texts, 4, axis=1)], 1)
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())  # activations are rounded by piece


def test_a_piece_is_no_longer_than_a_segment(directory: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="segment_len = 128"):
        open_source(directory, tmp_path / "none", inputs=None, sizes={"T": 129})
