"""ONNX graphs, node by node, and how quantised matrices stand in them.

ONNX Runtime's `MatMulNBits` is fast with blocks of 128 columns and accuracy level 4 (int8 activations); with blocks of
16 or 256, or without the level, it silently computes in fp32 at a fraction of the speed. Row scales are stored once, in
fp16, and rows without the padding of their last block; nodes that the runtime folds before it packs the weights make
of them what the kernel takes.

Exact mode makes the block-wise activation scales of level 4 equal to BitNet's per-token one: a block is 127 columns and
a sentinel, whose weight is 0 and whose activation is the token's largest. Then every block has the token's scale.

Shapes: T tokens, K inputs, N outputs, C blocks.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from phases.bitnet.activations import BLOCK
from phases.bitnet.linear import QuantisedTensor
from phases.bitnet.onnx_map import FOLDED_NODE, Fold
from phases.bitnet.packed import Matrix
from phases.bitnet.packing import pack_bits
from phases.bitnet.ternary import TernaryTensor

MICROSOFT = "com.microsoft"
OPSET, IR_VERSION = 21, 10
Array = npt.NDArray[Any]
Values = list[onnx.ValueInfoProto]


class Graph:
    """Nodes of one graph. Initialisers and names are shared with the branches inside it."""

    def __init__(self, parent: "Graph | None" = None) -> None:
        self.nodes = list[onnx.NodeProto]()
        self.folds: dict[str, Fold] = parent.folds if parent else {}
        self._root: Graph = parent._root if parent else self
        self.initialisers: dict[str, onnx.TensorProto] = parent.initialisers if parent else {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = parent._constants if parent else {}
        self._numbers: dict[str, int] = parent._numbers if parent else {}

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output and return its name."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        names = [self.name(kind) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def name(self, kind: str) -> str:
        """Return a name that nothing has yet."""
        number = self._numbers[kind] = self._numbers.get(kind, -1) + 1
        return f"{kind}_{number}"

    def constant(self, value: Array) -> str:
        """Return the name of an initialiser; equal ones are stored once."""
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = self.store(self.name("constant"), value)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """Return a constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def store(self, name: str, value: Array) -> str:
        """Store an initialiser under its own name, once."""
        if name not in self.initialisers:
            self.initialisers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def fold(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add to the outermost graph a node of constants, which `onnx_map` replaces by what comes of it."""
        output = self.name(f"{FOLDED_NODE}{kind}")
        self._root.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def proto(self, name: str, inputs: Values, outputs: Values) -> onnx.GraphProto:
        """Return the graph, with the initialisers if it has inputs: branches have none and see those outside."""
        initialisers = list(self.initialisers.values()) if inputs else []
        return helper.make_graph(self.nodes, name, inputs, outputs, initialisers)


def bits_of(matrix: QuantisedTensor) -> int:
    """Return the bits of a stored code."""
    return 2 if isinstance(matrix, TernaryTensor) else matrix.bits


def linear(graph: Graph, x: str, name: str, matrix: Matrix, *, bias: Tensor | None = None, exact: bool = False) -> str:
    """Return `x` (T, K) times the transpose of `matrix` (N, K), plus `bias` (N,)."""
    if isinstance(matrix, Tensor):
        y = graph.op("MatMul", x, graph.store(name, matrix.numpy().T))
    else:
        rows, columns = matrix.codes.shape
        blocks = -(-columns // _columns(exact))
        fold = _fold(graph, name, matrix, exact)
        y = graph.op(
            "MatMulNBits",
            with_sentinel(graph, x, columns) if exact else x,
            fold.blocks_name,
            fold.scales_name,
            domain=MICROSOFT,
            K=blocks * BLOCK if exact else columns,
            N=rows,
            bits=bits_of(matrix),
            block_size=BLOCK,
            accuracy_level=4,
        )
    return y if bias is None else graph.op("Add", y, graph.constant(bias.numpy()))


def lookup(graph: Graph, tokens: str, name: str, matrix: Matrix, *, exact: bool = False) -> str:
    """Return the rows (T, K) of an embedding, read from the same initialiser that a tied head multiplies with."""
    if isinstance(matrix, Tensor):
        # The head's own orientation, so that both can share it.
        columns_first = graph.op("Gather", graph.store(name, matrix.numpy().T), tokens, axis=1)
        return graph.op("Transpose", columns_first, perm=[1, 0])
    bits, columns = bits_of(matrix), matrix.codes.shape[1]
    fold = _fold(graph, name, matrix, exact, tokens)
    codes = fold.rows_name  # (T, bytes)
    if bits < 8:
        places = [graph.constant(np.array(place * bits, np.uint8)) for place in range(8 // bits)]
        shifted = [graph.op("BitShift", codes, place, direction="RIGHT") for place in places]
        mask = graph.constant(np.array((1 << bits) - 1, np.uint8))
        parts = [graph.op("Unsqueeze", graph.op("BitwiseAnd", x, mask), graph.ints(2)) for x in shifted]
        codes = graph.op("Reshape", graph.op("Concat", *parts, axis=2), graph.ints(0, -1))
    zero = graph.constant(np.array(1 << (bits - 1), np.float32))
    signed = graph.op("Sub", graph.op("Cast", codes, to=TensorProto.FLOAT), zero)
    if exact:
        blocks = graph.op("Reshape", signed, graph.ints(0, -1, BLOCK))
        signed = graph.op("Reshape", _part(graph, blocks, 2, _columns(exact)), graph.ints(0, -1))
    scales = graph.op("Cast", graph.op("Gather", fold.scales, tokens, axis=0), to=TensorProto.FLOAT)
    return graph.op("Mul", _part(graph, signed, 1, columns), scales)


def add_norm(graph: Graph, x: str, add: str, name: str, weight: Tensor, eps: float) -> tuple[str, str]:
    """Return the RMSNorm of x + add under the stored `weight` (D,), and the sum itself; `add` may be empty."""
    scale = graph.store(name, weight.numpy())
    if not add:
        return graph.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=eps), x
    names = [graph.name("normed"), "", "", graph.name("sum")]
    kind = "SkipSimplifiedLayerNormalization"
    graph.nodes.append(helper.make_node(kind, [x, add, scale], names, domain=MICROSOFT, epsilon=eps))
    return names[0], names[3]


def silu(graph: Graph, x: str) -> str:
    """Return x * sigmoid(x)."""
    return graph.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)


def split(graph: Graph, x: str, axis: int, *sizes: int) -> list[str]:
    """Return the parts of `x`, of so many places of an axis each."""
    return graph.ops("Split", x, graph.ints(*sizes), outputs=len(sizes), axis=axis)


def with_sentinel(graph: Graph, x: str, columns: int) -> str:
    """Return `x` (T, K) as blocks of 127 columns and the token's largest |x|, (T, C * 128)."""
    width = BLOCK - 1
    missing = -columns % width
    if missing:
        x = graph.op("Pad", x, graph.ints(0, 0, 0, missing))
    blocks = graph.op("Reshape", x, graph.ints(0, -1, width))
    largest = graph.op("ReduceMax", graph.op("Abs", blocks), graph.ints(1, 2), keepdims=1)
    sentinel = graph.op("Expand", largest, graph.ints(1, (columns + missing) // width, 1))
    return graph.op("Reshape", graph.op("Concat", blocks, sentinel, axis=2), graph.ints(0, -1))


def _columns(exact: bool) -> int:
    """Return how many columns of a matrix a block holds."""
    return BLOCK - 1 if exact else BLOCK


def _fold(graph: Graph, name: str, matrix: QuantisedTensor, exact: bool, tokens: str = "") -> Fold:
    """Store a matrix and its row scales once, and add the nodes that make of them what the kernel takes.

    With the name of `tokens` there is one more, for looking up their rows.
    """
    if name in graph.folds:
        return graph.folds[name]
    codes, bits = matrix.codes.numpy(), bits_of(matrix)
    blocks = -(-codes.shape[1] // _columns(exact))
    if exact:
        width = BLOCK - 1
        padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % width))).reshape(len(codes), -1, width)
        codes = np.pad(padded, ((0, 0), (0, 0), (0, 1))).reshape(len(codes), -1)
    stored = pack_bits(codes, bits, BLOCK).reshape(len(codes), -1)[:, : -(-codes.shape[1] * bits // 8)]
    graph.store(name, stored)
    scales = graph.store(f"{name}.scale", matrix.row_scale.numpy().astype(np.float16))
    size, fill = BLOCK * bits // 8, sum(1 << (place + bits - 1) for place in range(0, 8, bits))
    missing = graph.ints(0, 0, 0, blocks * size - stored.shape[1])
    whole = graph.fold("Pad", name, missing, graph.constant(np.array(fill, np.uint8)))
    whole = graph.fold("Reshape", whole, graph.ints(0, blocks, size))
    expanded = graph.fold("Expand", scales, graph.ints(len(codes), blocks))
    expanded = graph.fold("Cast", expanded, to=TensorProto.FLOAT)
    looked_up = graph.fold("Gather", name, tokens, axis=0) if tokens else ""
    found = Fold(name, scales, whole, expanded, len(codes), blocks, size, fill, looked_up)
    graph.folds[name] = found
    return found


def _part(graph: Graph, x: str, axis: int, length: int) -> str:
    return graph.op("Slice", x, graph.ints(0), graph.ints(length), graph.ints(axis))
