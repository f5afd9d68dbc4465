"""What passes over ONNX graphs share: constant matrices, what flows through on calibration feeds, new nodes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from phases.baking.optimise.session import Feeds, SessionSettings, graphs, open_session
from phases.bitnet.onnx_graph import MICROSOFT

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Channels:
    """What was seen of each channel (the last axis, K of them) of a value, over all feeds."""

    low: Floats
    high: Floats
    mean: Floats
    square: Floats  # mean of squares

    @property
    def largest(self) -> Floats:
        """The largest |x| of each channel."""
        largest: Floats = np.maximum(-self.low, self.high)
        return largest


def observe(model: onnx.ModelProto, names: Iterable[str], feeds: Sequence[Feeds]) -> dict[str, Channels]:
    """Run `model` and return value -> its channels, for those of `names` that are no ends of the graph."""
    known = {each.name for each in model.graph.input} | {each.name for each in model.graph.output}
    watched = sorted(set(names) - known)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in watched)
    seen: dict[str, list[tuple[int, Floats]]] = {name: [] for name in watched}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "watched.onnx"
        save(probe, file)
        session = open_session(file, SessionSettings(level="basic"))
        for each in feeds if watched else ():
            for name, value in zip(watched, session.run(watched, each), strict=True):
                if value.size:
                    rows = value.reshape(-1, value.shape[-1])
                    seen[name].append((len(rows), _summary(rows)))
    return {name: _joined(parts) for name, parts in seen.items() if _alike(parts)}


def _summary(rows: Floats) -> Floats:
    return np.stack([rows.min(0), rows.max(0), rows.mean(0), np.square(rows).mean(0)])


def _alike(parts: list[tuple[int, Floats]]) -> bool:
    return len({part.shape for _, part in parts}) == 1


def _joined(parts: list[tuple[int, Floats]]) -> Channels:
    counts, stacked = np.array([count for count, _ in parts]), np.stack([part for _, part in parts])
    mean, square = np.average(stacked[:, 2:], axis=0, weights=counts)
    return Channels(stacked[:, 0].min(0), stacked[:, 1].max(0), mean, square)


def matrices(model: onnx.ModelProto) -> dict[str, Floats]:
    """Return the constant fp32 matrices of the outermost graph."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT
    }


def products(graph: onnx.GraphProto, weights: dict[str, Floats]) -> list[onnx.NodeProto]:
    """Return a graph's products with constant matrices, without those of graphs inside it."""
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def by_input(nodes: Iterable[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    """Return first input -> the nodes that share it, in order."""
    groups = defaultdict[str, list[onnx.NodeProto]](list)
    for node in nodes:
        groups[node.input[0]].append(node)
    return groups


def split_gemms(model: onnx.ModelProto) -> None:
    """Write each `Gemm` with a constant matrix as a product and the addition of its bias, as other layers stand."""
    weights, made = matrices(model), dict[str, Floats]()
    for node in [each for each in model.graph.node if each.op_type == "Gemm" and each.input[1] in weights]:
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if given.get("alpha", 1) != 1 or given.get("beta", 1) != 1 or given.get("transA", 0):
            continue
        name = f"{node.input[1]}_turned" if given.get("transB", 0) else node.input[1]
        made[name] = weights[node.input[1]].T if given.get("transB", 0) else weights[node.input[1]]
        product, y = f"{node.output[0]}_product", node.output[0]
        bias = len(node.input) > 2
        new = [helper.make_node("MatMul", [node.input[0], name], [product if bias else y], name=product)]
        new += [helper.make_node("Add", [product, node.input[2]], [y])] if bias else []
        replace(model.graph, [node], new)
    store(model, made)


def store(model: onnx.ModelProto, values: dict[str, Floats]) -> None:
    """Add initialisers; a name that is there already keeps what it has."""
    known = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v, order="C"), name) for name, v in values.items() if name not in known
    )


def use_microsoft_operators(model: onnx.ModelProto) -> None:
    """Declare the domain of the runtime's own operators."""
    if all(opset.domain != MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def replace(graph: onnx.GraphProto, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
    """Put nodes where the first of the old ones was."""
    outputs = {node.output[0] for node in old}
    nodes = list[onnx.NodeProto]()
    placed = False
    for node in graph.node:
        if node.output[0] not in outputs:
            nodes.append(node)
        elif not placed:
            nodes.extend(new)
            placed = True
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def save(model: onnx.ModelProto, out: Path) -> None:
    """Write a model without what no node reads."""
    drop_unused(model)
    onnx.save(model, out)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove initialisers that no node reads, those in branches included."""
    used = {each.name for each in model.graph.output}
    used.update(name for graph in graphs(model) for node in graph.node for name in node.input)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    if len(kept) < len(model.graph.initializer):
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)
