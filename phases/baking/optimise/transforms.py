"""Other files of the same model: merged products, masks, int8 with and without outliers apart, 16, 8 and 4 bit weights.

Outlier split (after LLM.int8(), Dettmers et al. 2022, with channels chosen once, by calibration): a few channels of a
layer's input are far larger than the rest and would take the whole int8 range of a tensor; these go through a small
fp32 product of their own, and the rest is quantised finely. Channels are static, so the runtime's fused int8 kernels
still apply.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from phases.baking.optimise.masks import bounded_masks
from phases.baking.optimise.rewriting import (
    Floats,
    by_input,
    drop_unused,
    matrices,
    observe,
    products,
    replace,
    save,
    store,
    use_microsoft_operators,
)
from phases.baking.optimise.session import Feeds, graphs, read_model
from phases.baking.optimise.static_int8 import APART, int8_static
from phases.bitnet.onnx_graph import MICROSOFT
from phases.bitnet.packing import pack_bits

WORTH = 2.5  # times that a layer's range must shrink without them
BLOCK = 32  # columns to a scale, of weights in 8 or 4 bits
_SPLIT = "outliers_of_"
Transform = Callable[[Path, Path, Sequence[Feeds]], None]


def merge_products(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
    """Make one product of those that share an input (query, key and value), and split what it gives.

    Raises `ValueError` where no two do.
    """
    model = read_model(source)
    weights = matrices(model)
    shared = [group for group in by_input(products(model.graph, weights)).values() if len(group) > 1]
    if not shared:
        raise ValueError("no two products with constant matrices share an input")
    for number, nodes in enumerate(shared):
        parts = [weights[node.input[1]] for node in nodes]
        names = f"merged_{number}", f"merged_{number}_sizes", f"merged_{number}_all"
        sizes = np.array([part.shape[1] for part in parts], np.int64)
        store(model, {names[0]: np.concatenate(parts, 1), names[1]: sizes})
        made = [
            helper.make_node("MatMul", [nodes[0].input[0], names[0]], [names[2]], name=names[2]),
            helper.make_node("Split", [names[2], names[1]], [node.output[0] for node in nodes], axis=-1),
        ]
        replace(model.graph, nodes, made)
    save(model, out)


def int8_dynamic(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
    """Quantise weights per channel, and activations per tensor as they come."""
    _quantise(read_model(source), out, ())


def int8_outliers(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
    """Quantise as `int8_dynamic` does, with the largest input channels of each layer left in fp32."""
    model = read_model(source)
    weights = matrices(model)
    nodes = products(model.graph, weights)
    seen = observe(model, {node.input[0] for node in nodes}, calibration)
    excluded = list[str]()
    for number, node in enumerate(nodes):
        channels = seen.get(node.input[0])
        if channels is not None and _has_outliers(channels.largest):
            chosen = np.sort(np.argsort(channels.largest)[-APART:])
            excluded.append(_split(model, node, weights[node.input[1]], chosen, number))
    _quantise(model, out, excluded)


def int8_qdq(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
    """Quantise all that the runtime has int8 kernels for, convolutions above all, with ranges fixed by calibration."""
    options = {"ActivationSymmetric": False, "WeightSymmetric": True}
    with _quiet():
        quantize_static(
            source,
            out,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=options,
        )


class _Reader(CalibrationDataReader):
    """Hands calibration feeds to the runtime's quantiser."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser, which warns of every type that it cannot infer; what it wrote is run anyway."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def weights_8bit(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
    """Store weights in 8 bits, blocks of 32; activations stay as they are."""
    _block_quantise(source, out, 8)


def weights_4bit(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
    """Store weights in 4 bits, blocks of 32."""
    _block_quantise(source, out, 4)


def weights_bf16(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
    """Store weights in bfloat16, which the runtime widens as it loads them: on x86 it has no products in bfloat16."""
    model = read_model(source)
    casts = list[onnx.NodeProto]()
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT:
            name, short = tensor.name, f"{tensor.name}_bf16"
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16), short))
            casts.append(helper.make_node("Cast", [short], [name], name=short, to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    save(model, out)


TRANSFORMS: dict[str, Transform] = {
    "merged": merge_products,
    "masks": bounded_masks,
    "int8": int8_dynamic,
    "int8_outliers": int8_outliers,
    "int8_static": int8_static,
    "int8_qdq": int8_qdq,
    "weights_bf16": weights_bf16,
    "weights_8bit": weights_8bit,
    "weights_4bit": weights_4bit,
}


def _has_outliers(channels: Floats) -> bool:
    """Say whether a layer's range shrinks enough without its largest channels to pay for a product of their own."""
    ordered = np.sort(channels)
    return len(ordered) > 4 * APART and bool(ordered[-1] > WORTH * ordered[-APART - 1])


def _split(model: onnx.ModelProto, node: onnx.NodeProto, weight: Floats, chosen: Floats, number: int) -> str:
    """Replace a product by one of the rest, to be quantised, plus one of the `chosen` channels; return the latter."""
    prefix, x = f"{_SPLIT}{number}", node.input[0]
    keep = np.ones(len(weight), np.float32)
    keep[chosen] = 0
    stored: dict[str, Floats] = {
        f"{prefix}_keep": keep,
        f"{prefix}_rest": weight * keep[:, None],
        f"{prefix}_which": chosen.astype(np.int64),
        f"{prefix}_weight": weight[chosen],
    }
    store(model, stored)
    few = f"{prefix}_few"
    made = [
        helper.make_node("Mul", [x, f"{prefix}_keep"], [f"{prefix}_x"]),
        helper.make_node("MatMul", [f"{prefix}_x", f"{prefix}_rest"], [f"{prefix}_y"], name=f"{prefix}_y"),
        helper.make_node("Gather", [x, f"{prefix}_which"], [f"{prefix}_picked"], axis=-1),
        helper.make_node("MatMul", [f"{prefix}_picked", f"{prefix}_weight"], [few], name=few),
        helper.make_node("Add", [f"{prefix}_y", few], [node.output[0]]),
    ]
    replace(model.graph, [node], made)
    return few


def _quantise(model: onnx.ModelProto, out: Path, excluded: Sequence[str]) -> None:
    del model.graph.value_info[:]  # shapes of another graph mislead the quantiser (onnxruntime issue 25890)
    drop_unused(model)
    _declare_inner_products(model)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "source.onnx"
        save(model, file)
        options = {"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True, "EnableSubgraph": True}
        with _quiet():
            quantize_dynamic(
                file,
                out,
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(excluded),
                extra_options=options,
            )


def _declare_inner_products(model: onnx.ModelProto) -> None:
    """Declare what products inside loops and branches give: there, the quantiser has no default type."""
    for graph in graphs(model):
        if graph is not model.graph:
            names = [node.output[0] for node in graph.node if node.op_type == "MatMul"]
            graph.value_info.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)


def _block_quantise(source: Path, out: Path, bits: int) -> None:
    """Replace products with constant matrices by `MatMulNBits`, with a scale for each block of a row's columns."""
    model = read_model(source)
    weights, most = matrices(model), (1 << (bits - 1)) - 1
    # Inner graphs first: replacing nodes copies those beside them, with the graphs inside.
    for graph, node in [(g, n) for g in reversed(list(graphs(model))) for n in products(g, weights)]:
        matrix = weights[node.input[1]].T  # (N, K)
        rows, columns = matrix.shape
        blocks = np.pad(matrix, ((0, 0), (0, -columns % BLOCK))).reshape(rows, -1, BLOCK)
        scales = np.maximum(np.abs(blocks).max(2), 1e-12) / most  # (N, C)
        codes = np.rint(blocks / scales[:, :, None]).astype(np.int8).reshape(rows, -1)
        stored = {f"{node.input[1]}_b{bits}": pack_bits(codes, bits, BLOCK), f"{node.input[1]}_s{bits}": scales}
        store(model, stored)
        made = helper.make_node("MatMulNBits", [node.input[0], *stored], list(node.output), domain=MICROSOFT)
        values = {"K": columns, "N": rows, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
        made.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())
        replace(graph, [node], [made])
    use_microsoft_operators(model)
    save(model, out)
