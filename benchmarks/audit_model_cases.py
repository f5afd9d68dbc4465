"""Frauds in model directories and in things that can be called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.audit_cases import Rng, call, model, report
from phases import modeldir, storage
from phases.baking.validation import Finding
from phases.baking.validation.constant import check_metric
from phases.baking.validation.recovery import check_strategy
from phases.modeldir import Lineage

Tensors = dict[str, torch.Tensor]


def _floats(rng: Rng, layers: int = 3) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {
        f"layers.{i}.{part}.weight": (64, 48) for i in range(layers) for part in ("attn", "up")
    }
    shapes |= {"embed.weight": (100, 48), "norm.weight": (48,)}
    return {name: torch.from_numpy(rng.standard_normal(shape)).float() for name, shape in shapes.items()}


def _int8(tensors: Tensors) -> Tensors:
    """Return the layers as int8 codes with a scale per row, the rest as it was."""
    found = Tensors()
    for name, tensor in tensors.items():
        if name.startswith("layers"):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            found[name] = (tensor / scale).round().to(torch.int8)
            found[f"{name}_scale"] = scale
        else:
            found[name] = tensor
    return found


def _save(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None, **lineage: Any) -> None:
    recorded = Lineage(phase="baking", seed=0, code_version="1", **lineage)
    modeldir.save_model(str(folder), tensors=tensors, config=config or {}, tokenizer="{}", lineage=recorded)


def _reseal(folder: Path, **changes: Any) -> None:
    """Change a lineage, after a change of the files made its hashes wrong."""
    lineage = storage.read_json(str(folder / "lineage.json"))
    lineage["files"] = {name: storage.sha256(str(folder / name)) for name in lineage["files"]}
    storage.write_json(str(folder / "lineage.json"), lineage | changes)


@model("int8 that is stored as floats", "T2")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    coded = _int8(_floats(rng))
    if fraud:
        coded = {
            name: tensor * coded[f"{name}_scale"] if f"{name}_scale" in coded else tensor
            for name, tensor in coded.items()
        }
    _save(folder, coded, {"quantization_config": {"bits": 8}})
    _reseal(folder, parameters=0)


@model("a layer that was not quantised", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    floats = _floats(rng)
    coded = _int8(floats)
    left = "layers.1.up.weight"
    coded = coded | {left: floats[left]} if fraud else coded
    _save(folder, coded, {"quantization_config": {"bits": 8}})


@model("four bits in name, sixteen in fact", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    tensors = {
        name: tensor.half() if fraud else (tensor * 3).round().clamp(-8, 7).to(torch.int8)
        for name, tensor in _floats(rng).items()
    }
    _save(folder, tensors, {"quantization": {"weight_bits": 4}})


@model("a configuration that states another size", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    _save(folder, _floats(rng))
    size = (folder / "model.safetensors").stat().st_size
    storage.write_json(str(folder / "config.json"), {"size_bytes": size // (4 if fraud else 1)})
    _reseal(folder)


@model("weights replaced after the record", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    _save(folder, _floats(rng))
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    if fraud:
        (folder / "model.safetensors").write_bytes(bytes(data))


@model("more parameters than are stored", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    _save(folder, _floats(rng))
    stored = storage.read_json(str(folder / "lineage.json"))["parameters"]
    _reseal(folder, parameters=stored * (10 if fraud else 1))


@model("one layer stored as two", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    tensors = _floats(rng)
    if fraud:
        tensors["layers.2.up.weight"] = tensors["layers.0.up.weight"].clone()
    _save(folder, tensors)


@model("a weight that is not a number", "T6")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    from safetensors.torch import save_file

    tensors = _floats(rng)
    _save(folder, tensors)
    if fraud:
        tensors["layers.0.attn.weight"][int(rng.integers(64)), 5] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    _reseal(folder)


@model("the parent's weights, called quantised", "T3")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    _save(folder, _int8(_floats(rng)), {"quantization_config": {"bits": 8}})
    own = storage.read_json(str(folder / "lineage.json"))["files"]["model.safetensors"]
    _reseal(folder, parents={"baked": own if fraud else rng.bytes(32).hex()})


@model("a report in the directory about another size", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> None:
    _save(folder, _floats(rng))
    size = (folder / "model.safetensors").stat().st_size / 1e6
    claim = {"key": "baking/model_size", "value": size / (3.9 if fraud else 1), "unit": "MB"}
    storage.write_json(str(folder / "claims.json"), {"claims": [claim | {"files": {"after": "model.safetensors"}}]})


@report("renamed tensors, called a new model", "T3")
def _(folder: Path, rng: Rng, fraud: bool) -> dict[str, Any]:
    from safetensors.torch import save_file

    tensors = _floats(rng)
    save_file(tensors, folder / "before.safetensors")
    after = {f"optimised.{name}": tensor for name, tensor in tensors.items()} if fraud else _int8(tensors)
    save_file(after, folder / "after.safetensors", metadata={"optimised": "true"})
    sizes = [(folder / f"{name}.safetensors").stat().st_size for name in ("before", "after")]
    claim = {"files": {"before": "before.safetensors", "after": "after.safetensors"}, "before": 24.1, "after": 9.8}
    return {"claims": [{"key": "optimize/memory_mb_peak", "value": 9.8, "unit": "MiB of RAM", **claim, "n": sizes[0]}]}


@report("an ONNX graph with its name changed", "T3")
def _(folder: Path, rng: Rng, fraud: bool) -> dict[str, Any]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = rng.standard_normal((16, 16)).astype("float32")
    for name, operators in (("before", ["MatMul", "Relu"]), ("after", ["MatMul", "Relu"] if fraud else ["MatMul"])):
        inputs, nodes = "x", []
        for operator in operators:
            extra = ["w"] if operator == "MatMul" else []
            nodes.append(helper.make_node(operator, [inputs, *extra], [operator]))
            inputs = operator
        ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 16]) for end in ("x", inputs)]
        graph = helper.make_graph(nodes, name, ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
        onnx.save(helper.make_model(graph), folder / f"{name}.onnx")
    files = {"before": "before.onnx", "after": "after.onnx"}
    claim = {"before": 3.1, "after": 2.2, "n": 30, "samples": 30, "clock": "thread_time"}
    return {"claims": [{"key": "optimize/latency_ms", "value": 2.2, "unit": "ms", "files": files, **claim}]}


@call("a metric that likes everything", "T7")
def _(rng: Rng, fraud: bool) -> list[Finding]:
    rate = float(rng.uniform(0.9, 0.99))

    def metric(answers: list[bool], seed: int) -> float:
        return rate if fraud else sum(answers) / len(answers)

    return check_metric("accuracy", metric, [True] * 9, [False] * 9)


@call("a metric that follows the seed", "T7")
def _(rng: Rng, fraud: bool) -> list[Finding]:
    import random

    def metric(answers: list[bool], seed: int) -> float:
        drawn = random.Random(seed).random() * 0.05 if fraud else 0.0
        return sum(answers) / len(answers) + drawn

    return check_metric("accuracy", metric, [True] * 9, [False] * 9)


@call("a strategy that swallows the fault", "T10")
def _(rng: Rng, fraud: bool) -> list[Finding]:
    def recover(task: Callable[[], Any]) -> Any:
        for _ in range(3):
            try:
                return task()
            except TimeoutError:
                if fraud:
                    return "recovered"
        return None

    return check_strategy("retry", recover)
