"""The same file made ready for reading many tokens at once, at the price of memory.

With many tokens a product is bound by arithmetic and no longer by reading weights. Then the runtime's 2- and 4-bit
kernels are slower than fp32 (0.4 to 0.9 times at 256 tokens), its 8-bit one is faster for wide inputs and fp32 is the
fastest for narrow ones, whose blocks would be padded and whose activations cost as much to quantise as to multiply. So
a second session gets the same integer weights in 8 bits, which changes no result, or in fp32, where activations
are no longer rounded. It takes one or four bytes per weight beside what the file takes, so only who asks has it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from phases.bitnet.activations import BLOCK
from phases.bitnet.onnx_map import FOLDED, Fold
from phases.bitnet.packing import pack_bits, unpack_array

MANY = 32  # tokens from which on it is used
_NARROW = 384  # inputs below which fp32 is the fastest


def widened(path: Path) -> bytes:
    """Return a file's model with its quantised products in 8 bits or, where their inputs are few, in fp32."""
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    folds = {fold.blocks_name: fold for fold in (Fold(*entry) for entry in json.loads(metadata[FOLDED]))}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in (node for node in model.graph.node if node.op_type == "MatMulNBits"):
        attributes = {a.name: a.i for a in node.attribute}
        fold, columns = folds[node.input[1]], attributes["K"]
        codes = unpack_array(numpy_helper.to_array(stored[fold.codes]), attributes["bits"])[:, :columns]
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
    used = {name for node in model.graph.node for name in node.input}
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for name, tensor in stored.items() if name in used)
    content: bytes = model.SerializeToString()
    return content
