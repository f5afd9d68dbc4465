"""Exported files against the model they come from: logits, ponder steps, tied embeddings, and what the file holds."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from phases.bitnet.config import QuantisationConfig
from phases.bitnet.onnx_binding import StoredRows
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_map import FOLDED, WEIGHTS, Fold, with_mapped_weights
from phases.bitnet.onnx_prefill import widened
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import pack
from phases.bitnet.packed_linear import to_torch
from phases.bitnet.titan import to_bitnet
from phases.cognate.titan import TinyTitan
from phases.errors import ArtifactError
from support.titans import talkative, with_cache_in_floats

KINDS = {
    "int8": QuantisationConfig(),
    "int4": QuantisationConfig(embedding="int4"),
    "ternary memory": QuantisationConfig(memory="ternary", layout="tensor", method="absmean"),
    "plain embedding": QuantisationConfig(embedding="fp32"),
    "exact": QuantisationConfig(activations="per_token"),
}


@pytest.fixture(scope="module")
def text() -> Tensor:
    """Return (1, 50) tokens: three segments and a part of a fourth."""
    return torch.randint(16, 300, (1, 50), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def reference(model: TinyTitan, text: Tensor) -> tuple[np.ndarray, np.ndarray]:
    reading = model.read(text)
    return (reading.outputs @ model.head_weight.T)[0].numpy(), reading.steps[0].numpy()


def agree(found: np.ndarray, wanted: np.ndarray, quantised: bool) -> None:
    """Compare logits. An activation on the edge between two codes may fall to either side, which later tokens see."""
    off = np.abs(found - wanted) / np.abs(wanted).max()
    assert off.max() <= (0.02 if quantised else 1e-5)
    assert np.quantile(off, 0.25) <= 1e-6


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "full precision"])
def test_file_computes_what_the_model_computes(tmp_path: Path, text: Tensor, kind: str, tied: bool) -> None:
    parent = talkative(tied=tied)
    model = to_bitnet(parent, KINDS[kind]).eval() if kind in KINDS else parent
    opened = OnnxModel(with_cache_in_floats(pack(model), tmp_path, exact=kind == "exact"))
    found = opened.stream().read(text[0].tolist())
    logits, steps = reference(to_torch(pack(model)).double() if kind == "exact" else model, text)
    if kind == "exact":  # neither rounds anything but activations
        np.testing.assert_allclose(found.logits, logits, atol=1e-9 * np.abs(logits).max())
    agree(found.logits, logits, quantised=kind in KINDS)
    assert np.array_equal(found.steps, steps)
    assert len(set(steps.tolist())) > 1  # or halting was not tested
    stream = opened.stream()
    one_by_one = np.concatenate([stream.read([token]).logits for token in text[0].tolist()])
    agree(one_by_one, logits, quantised=kind in KINDS)


def test_every_quantised_product_is_of_few_bits_and_fast_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(pack(to_bitnet(talkative(), QuantisationConfig())), path)
    proto = onnx.load(path)
    graph, metadata = proto.graph, {entry.key: entry.value for entry in proto.metadata_props}
    folds = {fold.blocks_name: fold for fold in (Fold(*entry) for entry in json.loads(metadata[FOLDED]))}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    for node in products:
        attributes = {a.name: a.i for a in node.attribute}
        fold = folds[node.input[1]]
        ternary = fold.codes.startswith("blocks.")
        assert attributes["bits"] == (2 if ternary else 8)
        assert attributes["block_size"] == (64 if ternary else 128)
        assert attributes["accuracy_level"] == 4
        if attributes["bits"] == 2:
            packed = onnx.numpy_helper.to_array(weights[fold.codes])
            assert not ((packed & (packed >> 1)) & 0b01010101 & ~(packed >> 1)).any()
            assert all(set(np.unique((packed >> shift) & 3)) <= {1, 2, 3} for shift in (0, 2, 4, 6))
    assert len(products) == 2 * 4 + 4 + 1  # blocks; what memory reads with; the head
    assert not any(node.op_type == "MatMul" and node.input[1] in weights for node in graph.node)


def test_tied_embedding_is_stored_once(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        sizes[tied] = write_onnx(pack(to_bitnet(talkative(tied=tied), QuantisationConfig())), tmp_path / "model.onnx")
        assert sizes[tied] == (tmp_path / "model.onnx").stat().st_size
    assert 300 * 24 <= sizes[False] - sizes[True] <= 300 * 24 + 2000


@pytest.mark.parametrize("kind", ["int8", "int4", "exact"])
def test_mapped_weights_are_what_the_runtime_would_fold(tmp_path: Path, kind: str) -> None:
    """The file alone, opened by ONNX Runtime, folds what is written to be mapped and looks up what is read from it."""
    path = tmp_path / "model.onnx"
    write_onnx(pack(to_bitnet(talkative(), KINDS[kind])), path, exact=kind == "exact")
    mapped = with_mapped_weights(path, tmp_path)
    assert mapped is not None
    assert mapped.rows is not None
    declared = onnx.load_from_string(mapped.model).graph
    places = {t.name: {e.key: e.value for e in t.external_data} for t in declared.initializer if t.external_data}
    ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])  # complete by itself
    file = onnx.load(path)
    wanted = [node.output[0] for node in file.graph.node if node.name.startswith("folded/")]
    assert set(places) <= set(wanted)
    assert not any(node.name.startswith("folded/") for node in declared.node)
    looked_up = mapped.rows.look_up.output
    assert declared.input[-1].name == looked_up
    nodes = [node for node in file.graph.node if node.name.startswith("folded/")]
    types = {t.name: t.data_type for t in declared.initializer}
    types[looked_up] = declared.input[-1].type.tensor_type.elem_type
    outputs = [onnx.helper.make_tensor_value_info(name, types[name], None) for name in (*places, looked_up)]
    folding = onnx.helper.make_graph(nodes, "folding", [file.graph.input[0]], outputs, file.graph.initializer)
    proto = onnx.helper.make_model(folding, opset_imports=file.opset_import, ir_version=file.ir_version)
    ids = np.array([5, 299, 0, 5])
    *computed, rows = ort.InferenceSession(proto.SerializeToString()).run(None, {"tokens": ids})
    assert np.array_equal(StoredRows(path, mapped.rows)(ids), rows)
    assert rows.any(1).all()
    data = (tmp_path / WEIGHTS).read_bytes()
    for value, place in zip(computed, places.values(), strict=True):
        start, length = int(place["offset"]), int(place["length"])
        assert data[start : start + length] == value.tobytes()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is resident")
def test_scales_that_stay_mapped_take_no_memory_and_are_not_read_again(tmp_path: Path) -> None:
    write_onnx(pack(to_bitnet(talkative(), QuantisationConfig())), tmp_path / "model.onnx")
    stream = OnnxModel(tmp_path / "model.onnx").stream()
    stream.read([20, 30, 40])
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [place for place, line in enumerate(lines) if line.endswith(f"/{WEIGHTS} (deleted)")]
    resident = [next(line for line in lines[start:] if line.startswith("Rss:")) for start in starts]
    assert starts
    assert all(line.split()[1] == "0" for line in resident)


@pytest.mark.parametrize("width", [24, 400])
def test_fast_prefill_agrees_and_multiplies_wider_numbers(tmp_path: Path, width: int) -> None:
    """In 8 bits to rounding; in fp32 but for activations, which it does not round."""
    model = to_bitnet(talkative(d_model=width, segment_len=64), QuantisationConfig()).eval()
    path = with_cache_in_floats(pack(model), tmp_path)
    ids = torch.randint(16, 300, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    plain, fast = OnnxModel(path).stream(), OnnxModel(path, fast_prefill=True).stream()
    wanted = np.concatenate([plain.read(ids).logits, plain.read(ids[:3]).logits])
    found = np.concatenate([fast.read(ids).logits, fast.read(ids[:3]).logits])
    off = np.abs(found - wanted) / np.abs(wanted).max()
    assert off.max() <= (0.05 if width < 384 else 0.02)
    nodes = [node.op_type for node in onnx.load_from_string(widened(path)).graph.node]
    assert ("MatMulNBits" in nodes) == (width >= 384)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(pack(to_bitnet(talkative(), QuantisationConfig())), path)
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"model\.onnx"):
            OnnxModel(path)


def test_refuses_what_is_no_file_of_ours_and_tokens_that_do_not_exist(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        OnnxModel(tmp_path / "broken.onnx")
    write_onnx(pack(talkative()), tmp_path / "model.onnx")
    for tokens in ([300], [-1], []):
        with pytest.raises(ArtifactError, match="0 to 299"):
            OnnxModel(tmp_path / "model.onnx").stream().read(tokens)


def test_a_file_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    path = with_cache_in_floats(pack(talkative()), tmp_path)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {entry.key: entry.value for entry in proto.metadata_props} | {"format": "1"})
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ArtifactError, match="this version"):
        OnnxModel(path)


def test_refuses_to_pack_what_is_not_finite() -> None:
    model = talkative()
    with torch.no_grad():
        model.norm.weight[3] = torch.inf
    with pytest.raises(ArtifactError, match=r"norm\.weight"):
        pack(model)
