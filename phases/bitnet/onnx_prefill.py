"""The same file made ready for reading many tokens at once, at the price of memory.

With many tokens a product is bound by arithmetic and no longer by reading weights. Then the runtime's 2- and 4-bit
kernels are slower than fp32 (0.4 to 0.9 times at 256 tokens), its 8-bit one is faster for wide inputs and fp32 is the
fastest for narrow ones, whose blocks would be padded and whose activations cost as much to quantise as to multiply. So
a second session gets the same integer weights in 8 bits, which changes no result, or in fp32, where activations
are no longer rounded. It takes one or four bytes per weight beside what the file takes, so only who asks has it.

The runtime attends to a cache in int8 quickly for one token and at a fifth of the speed for many, so this session makes
floats of the cache first, and int8 of what comes of it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from phases.bitnet.activations import BLOCK
from phases.bitnet.onnx_export import INT8_CACHE
from phases.bitnet.onnx_map import FOLDED, Fold
from phases.bitnet.packing import pack_bits, unpack_bits

MANY = 32  # tokens from which on it is used
_NARROW = 384  # inputs below which fp32 is the fastest
_PAST, _STEPS, _PRESENT = 3, 12, 1  # first of two inputs, and of outputs, of attention: for keys and for values
# Of a quantisation that rounds to whole numbers: its scale and its zero.
_WHOLE: dict[str, npt.NDArray[Any]] = {"cache/one": np.array(1, np.float32), "cache/zero": np.array(0, np.int8)}


def widened(path: Path) -> bytes:
    """Return a file's model with its quantised products in 8 bits or, where their inputs are few, in fp32."""
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    folds = {fold.blocks_name: fold for fold in (Fold(*entry) for entry in json.loads(metadata[FOLDED]))}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in (node for node in model.graph.node if node.op_type == "MatMulNBits"):
        attributes = {a.name: a.i for a in node.attribute}
        fold, columns = folds[node.input[1]], attributes["K"]
        packed = torch.from_numpy(numpy_helper.to_array(stored[fold.codes]).copy())
        codes = unpack_bits(packed, attributes["bits"], columns).numpy()
        scales = numpy_helper.to_array(stored[fold.scales]).astype(np.float32)
        if columns < _NARROW:
            weight: npt.NDArray[Any] = np.ascontiguousarray((codes * scales).T)
            inputs, rest = [node.input[0]], {}
        else:
            weight = pack_bits(codes, 8, BLOCK)
            inputs, rest = [node.input[0], node.input[2]], attributes | {"bits": 8}
        name = f"{fold.codes}/widened"
        if name not in stored:
            stored[name] = numpy_helper.from_array(weight, name)
        inputs.insert(1, name)
        kind, domain = ("MatMulNBits", node.domain) if rest else ("MatMul", "")
        node.CopyFrom(helper.make_node(kind, inputs, list(node.output), domain=domain, **rest))
    nodes = [new for node in model.graph.node for new in _attending_to_floats(node, stored)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in model.graph.node for name in node.input}
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for name, tensor in stored.items() if name in used)
    content: bytes = model.SerializeToString()
    return content


def _attending_to_floats(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Return what attends to floats in place of a node that attends to a cache in int8, and any other as it is."""
    if node.op_type != "GroupQueryAttention" or len(node.input) <= _STEPS:
        return [node]
    inner, before, behind = onnx.NodeProto(), list[onnx.NodeProto](), list[onnx.NodeProto]()
    inner.CopyFrom(node)
    del inner.input[_STEPS:], inner.attribute[:]
    inner.attribute.extend(a for a in node.attribute if a.name not in INT8_CACHE)
    stored |= {t.name: t for t in (numpy_helper.from_array(v, k) for k, v in _WHOLE.items())}
    for part, step in enumerate(node.input[_STEPS:]):
        past, present = node.input[_PAST + part], node.output[_PRESENT + part]
        inner.input[_PAST + part], inner.output[_PRESENT + part] = f"{past}/floats", f"{present}/floats"
        inverse = numpy_helper.from_array(1 / numpy_helper.to_array(stored[step]), f"{step}/inverse")
        stored[inverse.name] = inverse
        before.append(helper.make_node("Cast", [past], [f"{past}/codes"], to=onnx.TensorProto.FLOAT))
        before.append(helper.make_node("Mul", [f"{past}/codes", step], [f"{past}/floats"]))
        behind.append(helper.make_node("Mul", [f"{present}/floats", inverse.name], [f"{present}/codes"]))
        behind.append(helper.make_node("QuantizeLinear", [f"{present}/codes", *_WHOLE], [present]))
    return [*before, inner, *behind]
