"""A cache in int8: near one in floats, the same read by either session, and only where a graph can have it."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from phases.bitnet.cache_steps import cache_steps
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.llama import read_llama
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import PackedModel, pack
from phases.bitnet.titan import to_bitnet
from support.llama import write_llama
from support.titans import small, with_cache_in_floats

IDS = np.random.default_rng(1).integers(0, 200, 150).tolist()


@pytest.fixture(scope="module", params=["llama", "titan"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    """Return a quantised LLaMA whose four heads share two of keys, each padded from 12 to 16, or a TinyTitan."""
    if request.param == "titan":
        return pack(to_bitnet(small(segment_len=128), QuantisationConfig()))
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder, "llama", True)
    return read_llama(folder, QuantisationConfig())


def cache_type(path: Path) -> int:
    inputs = {value.name: value.type.tensor_type.elem_type for value in onnx.load(path).graph.input}
    return inputs["key_0"]


def test_logits_are_near_those_of_a_cache_in_floats(tmp_path: Path, model: PackedModel) -> None:
    write_onnx(model, tmp_path / "int8.onnx")
    assert cache_type(tmp_path / "int8.onnx") == onnx.TensorProto.INT8
    paths = tmp_path / "int8.onnx", with_cache_in_floats(model, tmp_path)
    found, wanted = (OnnxModel(path).stream().read(IDS).logits for path in paths)
    off = np.abs(found - wanted) / np.abs(wanted).max()
    assert 0 < np.median(off) <= 0.01


def test_tokens_one_by_one_see_what_all_at_once_see(tmp_path: Path, model: PackedModel) -> None:
    """Text is longer than a cache is at first, so that it grows."""
    write_onnx(model, tmp_path / "model.onnx")
    opened = OnnxModel(tmp_path / "model.onnx")
    at_once, stream = opened.stream().read(IDS).logits, opened.stream()
    one_by_one = np.concatenate([stream.read([token]).logits for token in IDS])
    off = np.abs(one_by_one - at_once) / np.abs(at_once).max()
    assert np.median(off) <= 1e-3  # an activation on the edge between two codes may fall to either side


def test_both_sessions_write_the_same_codes(tmp_path: Path, model: PackedModel) -> None:
    """Of the first layer, whose inputs the two round differently in nothing but activations."""
    write_onnx(model, tmp_path / "model.onnx")
    streams = [OnnxModel(tmp_path / "model.onnx", fast_prefill=fast).stream() for fast in (False, True)]
    codes = list[np.ndarray]()
    for stream in streams:
        stream.read(IDS[:40])
        codes.append(stream.caches[0].values[0, ..., :40, :].astype(int))
        stream.read(IDS[40:80])
        assert np.array_equal(stream.caches[0].values[0, ..., :40, :], codes[-1])  # what was there stays as it was
    assert codes[0].any()
    assert np.abs(codes[0] - codes[1]).max() <= 2
    assert np.mean(codes[0] == codes[1]) >= 0.5


def test_steps_leave_room_and_are_those_of_both_halves_that_rotation_mixes(model: PackedModel) -> None:
    steps, a = cache_steps(model), model.architecture
    assert steps is not None
    assert steps.shape == (2, 2, 2, 16)
    assert np.array_equal(steps, np.roll(steps, 8, -1))
    padding = steps[..., a.head_dim // 2 : 8]
    assert (padding == padding.flat[0]).all()
    assert (steps > 0).all()


@pytest.mark.parametrize("exact", [False, True])
def test_exact_and_full_precision_files_keep_floats(tmp_path: Path, exact: bool) -> None:
    parent = small()
    model = pack(to_bitnet(parent, QuantisationConfig(activations="per_token")) if exact else parent)
    write_onnx(model, tmp_path / "model.onnx", exact=exact)
    assert cache_type(tmp_path / "model.onnx") == (onnx.TensorProto.DOUBLE if exact else onnx.TensorProto.FLOAT)
