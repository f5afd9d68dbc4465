"""Optimising small files: transforms compute the same or nearly, bad files are refused, nothing unproven is kept."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from phases.baking.optimise.ablation import ablate, effective_passes
from phases.baking.optimise.candidates import Candidate, best, front, verdict
from phases.baking.optimise.inputs import Inputs, given_inputs, random_inputs
from phases.baking.optimise.memory import peak_bytes
from phases.baking.optimise.package import FULL, MODEL, REPORT, open_package, write_package
from phases.baking.optimise.quality import agreement, outputs
from phases.baking.optimise.search import Search, optimise, transformed
from phases.baking.optimise.session import Feeds, SessionSettings, node_counts, open_session, read_model, runs
from phases.baking.optimise.sources import open_source
from phases.baking.optimise.timing import speed_ratio
from phases.baking.optimise.transforms import TRANSFORMS, int8_dynamic, int8_outliers, merge_products
from phases.baking.validation.audit import audit
from phases.errors import ArtifactError, ConfigError, NumericalError

WIDTH = 64


def _file(path: Path, *, outlier: float = 1.0, weight: float = 1.0) -> Path:
    """Write a file in which three products share an input, one channel of which is `outlier` times as large."""
    rng = np.random.default_rng(0)
    scale = np.ones(WIDTH, np.float32)
    scale[5] = outlier
    weights = {n: (rng.standard_normal((WIDTH, WIDTH)) / 8).astype(np.float32) for n in ("q", "k", "v", "o")}
    weights["o"][3, 3] *= weight
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["h"]),
        *(helper.make_node("MatMul", ["h", name], [f"h_{name}"]) for name in ("q", "k", "v")),
        helper.make_node("Mul", ["h_q", "h_k"], ["qk"]),
        helper.make_node("Tanh", ["qk"], ["gate"]),
        helper.make_node("Mul", ["gate", "h_v"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "o"], ["projected"]),
        helper.make_node("Add", ["projected", "x"], ["y"]),
    ]
    stored = [numpy_helper.from_array(value, name) for name, value in (weights | {"scale": scale}).items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return _file(tmp_path / "model.onnx")


def _feeds(path: Path, count: int = 4) -> list[dict[str, np.ndarray]]:
    session = open_session(path, SessionSettings())
    return random_inputs(session, read_model(path), {"batch": 8}, count, 0).evaluation


def test_merged_products_compute_the_same(file: Path, tmp_path: Path) -> None:
    out, feeds = tmp_path / "merged.onnx", _feeds(file)
    merge_products(file, out, feeds)
    assert node_counts(file)["MatMul"] == 4
    assert node_counts(out)["MatMul"] == 2
    ours, theirs = (outputs(open_session(path, SessionSettings(level="off")), feeds) for path in (out, file))
    np.testing.assert_allclose(ours[0][0], theirs[0][0], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "masks"])
def test_every_transform_runs_and_is_close(name: str, file: Path, tmp_path: Path) -> None:
    out, feeds = tmp_path / "out.onnx", _feeds(file)
    TRANSFORMS[name](file, out, feeds)
    ours, theirs = (outputs(open_session(path, SessionSettings()), feeds) for path in (out, file))
    assert agreement(theirs, ours).smallest > (0.97 if name == "weights_4bit" else 0.995)
    assert out.stat().st_size < file.stat().st_size or name == "merged"


def test_what_a_transform_makes_of_a_file_has_to_run(file: Path, tmp_path: Path) -> None:
    def broken(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
        model = read_model(source)
        model.graph.node[-1].op_type = "MatMul"  # 8 rows by 8 rows: shapes are known when it runs
        onnx.save(model, out)

    inputs = Inputs(_feeds(file), _feeds(file))
    wanted = {"broken": broken, "int8": TRANSFORMS["int8"]}
    files, failed = transformed(file, tmp_path, inputs, Search(transforms=wanted))
    assert files.keys() == {"fp32", "int8"}
    assert "does not run" in failed["broken"]
    assert not (tmp_path / "broken.onnx").exists()


def test_outliers_apart_lose_less_than_together(tmp_path: Path) -> None:
    file = _file(tmp_path / "model.onnx", outlier=60)
    feeds, losses = _feeds(file), []
    for transform in (int8_dynamic, int8_outliers):
        out = tmp_path / f"{transform.__name__}.onnx"
        transform(file, out, feeds)
        ours, theirs = (outputs(open_session(path, SessionSettings()), feeds) for path in (out, file))
        losses.append(agreement(theirs, ours).loss)
    assert losses[1] < losses[0] / 2


def test_passes_that_change_nothing_are_not_ablated(file: Path) -> None:
    assert "AttentionFusion" not in effective_passes(file)


def test_a_pass_that_breaks_a_sound_graph_is_found_and_left_out(tmp_path: Path) -> None:
    """ONNX Runtime 1.31 takes a Range with bounds of one element, and a fusion makes a Slice of it that fails."""
    table = numpy_helper.from_array(np.arange(40, dtype=np.float32).reshape(20, 2), "table")
    numbers = [numpy_helper.from_array(np.array([number]), name) for number, name in ((0, "zero"), (1, "one"))]
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1, end=2),
        helper.make_node("Squeeze", ["shape"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["rows"]),
        helper.make_node("MatMul", ["x", "rows"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", None]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "gather", ends[:1], ends[1:], [table, *numbers])
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    feeds = {"x": np.ones((3, 5), np.float32)}
    if runs(file, SessionSettings(), feeds):
        pytest.skip("this version of the runtime does it right")
    found = ablate(file, feeds, 3)
    assert found.broken == ("GatherToSliceFusion",)
    assert "GatherToSliceFusion" in found.harmful
    assert runs(file, found.settings, feeds)
    assert "all" not in found.seconds


def test_a_file_with_an_unknown_operator_is_refused(file: Path) -> None:
    model = onnx.load(file)
    model.graph.node[3].op_type = "Frobnicate"
    onnx.save(model, file)
    with pytest.raises(ArtifactError, match="Frobnicate"):
        open_source(str(file), file.parent, inputs=None, sizes={})


def test_a_file_with_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    file = _file(tmp_path / "model.onnx", weight=float("nan"))
    with pytest.raises(NumericalError, match="weight o"):
        open_source(str(file), tmp_path, inputs=None, sizes={})


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x01" * 50])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ArtifactError):
        open_source(str(file), tmp_path, inputs=None, sizes={})


def test_inputs_are_checked_and_never_shared(file: Path, tmp_path: Path) -> None:
    session = open_session(file, SessionSettings())
    given = tmp_path / "inputs.npz"
    np.savez(given, x=np.arange(10 * WIDTH, dtype=np.float32).reshape(10, WIDTH))
    inputs = given_inputs(session, given)
    used = {float(feed["x"][0, 0]) for feed in inputs.calibration}
    assert not used & {float(feed["x"][0, 0]) for feed in inputs.evaluation}
    np.savez(given, y=np.zeros((10, WIDTH), np.float32))
    with pytest.raises(ConfigError, match="lacks"):
        given_inputs(session, given)
    with pytest.raises(ConfigError, match="--size"):
        open_source(str(file), tmp_path, inputs=None, sizes={"tokens": 3})


def test_agreement_is_of_the_worst_row_and_refuses_what_is_no_number() -> None:
    rows = np.eye(4, dtype=np.float32)
    turned = rows.copy()
    turned[2] = [0, 1, 1, 0]
    assert agreement([[rows]], [[turned]]).smallest == pytest.approx(2**-0.5)
    assert agreement([[rows]], [[rows[:3]]]).loss == np.inf
    assert agreement([[rows]], [[rows * np.nan]]).loss == np.inf


def _candidate(name: str, seconds: float, size: int, loss: float, *, low: float = 1.1) -> Candidate:
    return Candidate(
        name=name, file=f"{name}.onnx", settings=SessionSettings(), seconds=seconds, speed=low + 0.1, speed_low=low,
        speed_high=low + 0.2, bytes=size, memory=size, cosine=1 - loss, loss=loss,
    )  # fmt: skip


def test_what_does_not_win_is_dropped_and_the_front_is_what_nothing_beats() -> None:
    base = _candidate("fp32", 1.0, 100, 0.0, low=0.95)
    tried = [
        _candidate("fast", 0.5, 30, 0.005),
        _candidate("small", 0.9, 20, 0.008),
        _candidate("lossy", 0.1, 10, 0.2),
        _candidate("useless", 1.0, 100, 0.0, low=0.98),
        _candidate("beaten", 0.6, 40, 0.006),
    ]
    judged = [base, *(verdict(candidate, base, 0.01) for candidate in tried)]
    assert {c.name for c in judged if c.dropped} == {"lossy", "useless"}
    assert {c.name for c in front(judged)} == {"fp32", "fast", "small"}
    assert best(judged, "latency").name == "fast"
    assert best(judged, "size").name == "small"


def test_what_stays_for_its_bytes_is_not_chosen_for_speed_that_is_chance() -> None:
    base = _candidate("fp32", 1.0, 100, 0.0, low=0.95)
    lighter = verdict(_candidate("lighter", 0.99, 90, 0.0, low=0.97), base, 0.01)
    assert not lighter.dropped
    assert best([base, lighter], "latency").name == "fp32"
    assert best([base, lighter], "size").name == "lighter"


def test_a_ratio_that_may_be_one_shows_nothing() -> None:
    rng = np.random.default_rng(0)
    same = [rng.normal(1, 0.1, 30).tolist() for _ in range(2)]
    assert not speed_ratio(*same).faster
    assert speed_ratio([2 * s for s in same[0]], same[0]).faster


@pytest.mark.slow
def test_a_search_leaves_a_package_that_an_audit_holds(file: Path, tmp_path: Path) -> None:
    source = open_source(str(file), tmp_path, inputs=None, sizes={"batch": 16})
    search = Search(target="size", max_loss=0.02, rounds=5)
    outcome = optimise(source.file, tmp_path, source.inputs, search)
    assert outcome.chosen.bytes < outcome.baseline.bytes
    out = tmp_path / "package"
    write_package(out, outcome, search, None, source.inputs)
    assert {path.name for path in out.iterdir()} == {MODEL, FULL, REPORT, "session.json"}
    assert audit(out).clean
    path, settings = open_package(out)
    found = outputs(open_session(path, settings), source.inputs.evaluation)
    wanted = outputs(open_session(out / FULL, SessionSettings(level="off")), source.inputs.evaluation)
    assert agreement(wanted, found).loss == pytest.approx(outcome.chosen.loss, abs=1e-6)
    written = json.loads((out / REPORT).read_text())
    assert written["chosen"] == outcome.chosen.name
    with pytest.raises(ArtifactError, match="exists"):
        write_package(out, outcome, search, None, source.inputs)
    path.write_bytes(b"other")
    with pytest.raises(ArtifactError, match="not the file"):
        open_package(out)


def test_memory_is_measured_in_a_process_of_its_own(file: Path) -> None:
    assert 0 < peak_bytes(file, SessionSettings(), _feeds(file, 1)[0]) < 500e6
