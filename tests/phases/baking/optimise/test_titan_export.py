"""A TinyTitan in one ONNX file reads as torch does: any rows, tokens and past, over segments, steps and memory."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.baking.optimise.session import node_counts
from phases.baking.optimise.titan_export import export_titan
from phases.baking.optimise.titan_runtime import OnnxTitan
from phases.baking.optimise.transforms import int8_dynamic
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.titan import to_bitnet
from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.errors import ArtifactError, ConfigError

SEGMENT = 8


def _model(*, tied: bool = True) -> TinyTitan:
    """Return a random model of three ponder steps that halts now early, now late, and listens to its memory."""
    torch.manual_seed(0)
    config = TitanConfig(
        vocab_size=300, d_model=16, n_layers=3, n_heads=2, hidden=24, tied=tied, segment_len=SEGMENT,
        train_ponder_steps=3, memory=MemoryConfig(hidden=20, capacity=6),
    )  # fmt: skip
    model = TinyTitan(config).eval().requires_grad_(False)
    model.embedding.weight.mul_(20)
    model.step_embedding.mul_(20)
    model.halting.linear.weight.normal_(std=0.5)
    model.halting.linear.bias.fill_(2)
    model.memory.read_gate.bias.fill_(1)
    return model


@pytest.fixture(scope="module")
def model() -> TinyTitan:
    return _model()


@pytest.fixture(scope="module")
def file(model: TinyTitan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("titan") / "model.onnx"
    export_titan(model, path)
    return path


@pytest.fixture(scope="module")
def exported(file: Path) -> OnnxTitan:
    return OnnxTitan(file)


def _tokens(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, shape)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 2 * SEGMENT + 3), min_size=1, max_size=5),
    seed=st.integers(0),
)
def test_any_rows_read_in_any_pieces_are_read_as_torch_reads_them(
    model: TinyTitan, exported: OnnxTitan, batch: int, lengths: list[int], seed: int
) -> None:
    state, stream = model.empty_state(batch), exported.stream(batch)
    for length in lengths:
        ids = _tokens(seed, batch, length)
        wanted = model.read(torch.from_numpy(ids), state)
        found = stream.read(ids)
        np.testing.assert_allclose(found.logits, (wanted.outputs @ model.head_weight.T).numpy(), atol=1e-4)
        np.testing.assert_array_equal(found.steps, wanted.steps.numpy())


def test_what_is_read_needs_all_steps_and_the_memory(model: TinyTitan) -> None:
    reading = model.read(torch.from_numpy(_tokens(0, 3, 4 * SEGMENT)))
    assert set(reading.steps.unique().tolist()) == {1, 2, 3}
    assert reading.hits[:, SEGMENT:].mean() > 0.1


@pytest.mark.parametrize(("batch", "length", "past"), [(1, 1, 0), (3, 1, 0), (1, 6, 1), (3, 6, 9), (2, 1, 21)])
def test_greedy_text_is_that_of_torch(
    model: TinyTitan, exported: OnnxTitan, batch: int, length: int, past: int
) -> None:
    stream, state, unread = exported.stream(batch), model.empty_state(batch), _tokens(1, batch, length)
    if past:
        stream.read(_tokens(2, batch, past))
        model.read(torch.from_numpy(_tokens(2, batch, past)), state)
    found = stream.greedy(unread, 24)
    for place in range(24):
        model.read(torch.from_numpy(unread), state)
        assert state.prediction is not None
        unread = state.prediction.argmax(-1, keepdim=True).numpy()
        np.testing.assert_array_equal(found[:, place], unread[:, 0])


def test_a_head_of_its_own_is_exported(tmp_path: Path) -> None:
    model = _model(tied=False)
    export_titan(model, tmp_path / "model.onnx")
    ids = _tokens(3, 2, SEGMENT + 3)
    found = OnnxTitan(tmp_path / "model.onnx").stream(2).read(ids)
    np.testing.assert_allclose(found.logits, model(torch.from_numpy(ids))[0].numpy(), atol=1e-4)


def test_the_steps_are_a_loop_that_ends_when_all_have_halted(file: Path, model: TinyTitan) -> None:
    assert node_counts(file)["Loop"] == 1
    eager = _model()
    eager.halting.linear.bias.fill_(1e4)  # all halt at once
    other = file.with_name("eager.onnx")
    export_titan(eager, other)
    stream = OnnxTitan(other).stream(2)
    assert (stream.read(_tokens(4, 2, SEGMENT - 1)).steps == 1).all()


def test_int8_reaches_the_products_in_the_loop_and_stays_close(file: Path, exported: OnnxTitan) -> None:
    small = file.with_name("int8.onnx")
    int8_dynamic(file, small, ())
    counts = node_counts(small)
    assert counts["MatMulInteger"] == 3 * 4 + 4 + 1  # blocks, memory, head
    ids = _tokens(5, 2, 3 * SEGMENT)
    logits = [model.stream(2).read(ids).logits for model in (exported, OnnxTitan(small))]
    assert np.corrcoef(logits[0][:, 0].ravel(), logits[1][:, 0].ravel())[0, 1] > 0.9


def test_a_file_is_whole_or_not_there(model: TinyTitan, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    broken = _model()
    broken.memory.q.weight[0, 0] = torch.nan
    with pytest.raises(ArtifactError, match="not finite"):
        export_titan(broken, out)
    with pytest.raises(ConfigError, match="forge quantize"):
        export_titan(to_bitnet(model, QuantisationConfig()), out)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_is_refused(exported: OnnxTitan, tmp_path: Path) -> None:
    for ids in (np.zeros((1, 0), np.int64), np.zeros((2, 3), np.int64), np.full((1, 2), 300), np.full((1, 2), -1)):
        with pytest.raises(ConfigError, match="tokens"):
            exported.stream(1).read(ids)
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "other", ends[:1], ends[1:])
    other = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), other)
    with pytest.raises(ArtifactError, match="whole TinyTitan"):
        OnnxTitan(other)
