"""Static int8: what each product gets by calibration, tables by row, biases, and masks that make no denormals."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from phases.baking.optimise.masks import LOWEST, bounded_masks
from phases.baking.optimise.quality import agreement, outputs
from phases.baking.optimise.rewriting import Channels, observe, split_gemms
from phases.baking.optimise.session import Feeds, Level, SessionSettings, node_counts, open_session, read_model
from phases.baking.optimise.static_int8 import Plan, best_plan, int8_static
from phases.baking.optimise.transforms import int8_dynamic, int8_qdq, weights_bf16

WIDTH, ROWS = 64, 2048


def _file(path: Path, *, lowest: float = -1e9) -> Path:
    """Write attention over looked-up rows, with biases and a mask, and a second product behind outliers."""
    rng = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {
        n: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / (32 if n in "qk" else 8) for n in "qkvo"
    }
    sizes = np.ones(WIDTH, np.float32)
    sizes[[3, 9]] = 80, 40
    stored |= {f"{name}_bias": rng.standard_normal(WIDTH).astype(np.float32) for name in "qkvo"}
    stored |= {"table": rng.standard_normal((ROWS, WIDTH)).astype(np.float32) * rng.uniform(0.1, 9, (ROWS, 1))}
    stored |= {"sizes": sizes, "lowest": np.array(lowest, np.float32), "one": np.array(1, np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Tanh", ["rows"], ["x"]),
        *(helper.make_node("MatMul", ["x", n], [f"x_{n}"]) for n in ("q", "k", "v")),
        *(helper.make_node("Add", [f"x_{n}", f"{n}_bias"], [n.upper()]) for n in ("q", "k", "v")),
        helper.make_node("Transpose", ["K"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["Q", "turned"], ["scores"]),
        helper.make_node("Sub", ["one", "mask"], ["away"]),
        helper.make_node("Mul", ["away", "lowest"], ["added"]),
        helper.make_node("Add", ["scores", "added"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "V"], ["mixed"]),
        helper.make_node("Mul", ["mixed", "sizes"], ["uneven"]),
        helper.make_node("MatMul", ["uneven", "o"], ["projected"]),
        helper.make_node("Add", ["o_bias", "projected"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "T"]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["B", 1, "T"]),
    ]
    outputs_ = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "T", WIDTH])]
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in stored.items()]
    graph = helper.make_graph(nodes, "attention", inputs, outputs_, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _feeds(count: int, seed: int) -> list[Feeds]:
    rng = np.random.default_rng(seed)
    masks = [(np.arange(12) < rng.integers(4, 13, (2, 1, 1))).astype(np.float32) for _ in range(count)]
    return [{"ids": rng.integers(0, ROWS, (2, 12)), "mask": mask} for mask in masks]


def _run(path: Path, feeds: list[Feeds], level: Level = "all") -> list[list[np.ndarray]]:
    return outputs(open_session(path, SessionSettings(level=level)), feeds)


def test_static_int8_is_small_near_and_nearer_than_dynamic(tmp_path: Path) -> None:
    file, feeds = _file(tmp_path / "model.onnx"), _feeds(8, 1)
    int8_static(file, tmp_path / "static.onnx", _feeds(16, 0))
    int8_dynamic(file, tmp_path / "dynamic.onnx", ())
    wanted = _run(file, feeds, "off")
    static, dynamic = (agreement(wanted, _run(tmp_path / f"{n}.onnx", feeds)) for n in ("static", "dynamic"))
    assert static.loss < 0.002 < dynamic.loss
    assert (tmp_path / "static.onnx").stat().st_size < 0.3 * file.stat().st_size
    plain = _run(tmp_path / "static.onnx", feeds, "off")
    assert agreement(plain, _run(tmp_path / "static.onnx", feeds)).loss < 1e-6


def test_products_that_share_an_input_share_its_rounding_and_biases_vanish(tmp_path: Path) -> None:
    file = _file(tmp_path / "model.onnx")
    int8_static(file, tmp_path / "static.onnx", _feeds(4, 0))
    counts = node_counts(tmp_path / "static.onnx")
    assert counts["MatMulIntegerToFloat"] == 4
    assert counts["QuantizeLinear"] == 2
    assert counts["Add"] == 1 + (counts["MatMul"] - 2)  # the mask's, and one for each product apart


def test_what_nothing_was_seen_of_stays_as_it_is(tmp_path: Path) -> None:
    file = _file(tmp_path / "model.onnx")
    int8_static(file, tmp_path / "static.onnx", ())
    assert node_counts(tmp_path / "static.onnx")["MatMul"] == node_counts(file)["MatMul"]


def test_a_remedy_only_where_channels_differ_and_the_dearer_only_where_it_pays() -> None:
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)

    def plan(high: dict[int, float]) -> Plan:
        largest = np.full(WIDTH, 3, np.float32)
        largest[list(high)] = list(high.values())
        return best_plan(Channels(-largest, largest, 0 * largest, np.square(largest / 3)), weight)

    even, uneven, extreme = plan({}), plan({c: 3 * 1.08**c for c in range(WIDTH)}), plan({5: 4000, 7: 2000})
    assert not even.smooth
    assert not len(even.apart)
    assert uneven.smooth
    assert uneven.factors[60] > uneven.factors[30] > uneven.factors[0]
    assert {5, 7} <= set(extreme.apart.tolist())
    assert extreme.step == pytest.approx(even.step)


def test_means_count_rows_and_not_feeds(tmp_path: Path) -> None:
    file = _file(tmp_path / "model.onnx")
    rows = (np.arange(6)[None], np.arange(6, 8)[None])
    feeds: list[Feeds] = [{"ids": ids, "mask": np.ones((1, 1, ids.shape[1]), np.float32)} for ids in rows]
    model = read_model(file)
    seen = observe(model, ["x"], feeds)["x"]
    table = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}["table"]
    x = np.tanh(table[:8])
    np.testing.assert_allclose(seen.mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(seen.square, np.square(x).mean(0), atol=1e-6)
    np.testing.assert_allclose(seen.low, x.min(0), atol=1e-6)


@pytest.mark.parametrize("lowest", [-1e9, -3e38])
def test_bounded_masks_shut_out_the_same_without_denormals(tmp_path: Path, lowest: float) -> None:
    file, out, feeds = _file(tmp_path / "model.onnx"), tmp_path / "bounded.onnx", _feeds(4, 2)
    bounded_masks(file, out, ())
    for theirs, ours in zip(_run(file, feeds), _run(out, feeds), strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-5)
    model = onnx.load(out)
    model.graph.output.append(helper.make_empty_tensor_value_info("weights"))
    onnx.save(model, out)
    weights = np.concatenate([found[1].ravel() for found in _run(out, feeds)])
    shut = weights[weights < np.exp(LOWEST / 2)]
    assert len(shut)
    assert (shut >= np.finfo(np.float32).tiny).all()


def test_a_graph_without_masks_is_left_to_others(tmp_path: Path) -> None:
    file = _file(tmp_path / "model.onnx")
    model = onnx.load(file)
    (add,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    add.input[0] = "scores"
    onnx.save(model, file)
    with pytest.raises(ValueError, match="mask"):
        bounded_masks(file, tmp_path / "out.onnx", ())


def _convolutions(path: Path) -> Path:
    """Write a convolution and a `Gemm` of a turned matrix."""
    rng = np.random.default_rng(0)
    stored = {"kernel": (16, 3, 3, 3), "matrix": (WIDTH, 16 * 36), "bias": (WIDTH,)}
    tensors = [numpy_helper.from_array(0.1 * rng.standard_normal(s).astype(np.float32), n) for n, s in stored.items()]
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "matrix", "bias"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", WIDTH]),
    ]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _images(count: int, seed: int) -> list[Feeds]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((2, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def test_gemms_become_products_of_eight_bits(tmp_path: Path) -> None:
    file, out = _convolutions(tmp_path / "model.onnx"), tmp_path / "static.onnx"
    model = read_model(file)
    split_gemms(model)
    onnx.save(model, out)
    assert node_counts(out)["Gemm"] == 0
    np.testing.assert_allclose(_run(out, _images(1, 0))[0][0], _run(file, _images(1, 0))[0][0], atol=1e-4)
    int8_static(file, out, _images(8, 0))
    assert node_counts(out)["MatMulIntegerToFloat"] == 1
    assert agreement(_run(file, _images(4, 1)), _run(out, _images(4, 1))).loss < 0.001


def test_convolutions_become_eight_bits(tmp_path: Path) -> None:
    file, out = _convolutions(tmp_path / "model.onnx"), tmp_path / "qdq.onnx"
    int8_qdq(file, out, _images(8, 0))
    kinds = {tensor.data_type for tensor in onnx.load(out).graph.initializer if len(tensor.dims) > 1}
    assert kinds == {TensorProto.INT8}
    assert agreement(_run(file, _images(4, 1)), _run(out, _images(4, 1))).loss < 0.005


def test_bfloat16_halves_the_file(tmp_path: Path) -> None:
    file, out = _file(tmp_path / "model.onnx"), tmp_path / "bf16.onnx"
    weights_bf16(file, out, ())
    assert out.stat().st_size < 0.52 * file.stat().st_size
    assert 0 < agreement(_run(file, _feeds(4, 1)), _run(out, _feeds(4, 1))).loss < 0.001
