"""ONNX graphs, node by node, and how quantised matrices stand in them.

ONNX Runtime's `MatMulNBits` is fast with blocks of 128 columns, or 64 in narrow ternary matrices, and accuracy level 4
(int8 activations); with blocks of 16 or 256, or without the level, it silently computes in fp32 at a fraction of the
speed. Row scales are stored once, in fp16, and rows without the padding of their last block; nodes that the runtime
folds before it packs the weights make of them what the kernel takes.

An exact graph makes of level 4's block-wise activation scales BitNet's per-token one. Activations are quantised before
the kernel and handed to it as whole numbers; a block is 127 columns and a sentinel, whose weight is 0 and whose
activation is 127, so that the kernel's own scale is 1 and its sums are whole. All else is in fp64: in fp32 torch and
the runtime round differently, which tips activations on the edge between two codes, and every later token sees that.

Shapes: T tokens, K inputs, N outputs, C blocks.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from phases.bitnet.activations import BLOCK, LEAST, MOST, block_size
from phases.bitnet.linear import QuantisedTensor
from phases.bitnet.onnx_map import FOLDED_NODE, Fold, LookUp
from phases.bitnet.packed import Matrix
from phases.bitnet.packing import pack_bits

MICROSOFT = "com.microsoft"
OPSET, IR_VERSION = 21, 10
Array = npt.NDArray[Any]
Values = list[onnx.ValueInfoProto]


class Graph:
    """Nodes of one graph. Initialisers and names are shared with the branches inside it."""

    def __init__(self, parent: "Graph | None" = None, *, exact: bool = False) -> None:
        self.exact: bool = parent.exact if parent else exact
        self.floats: type[np.floating[Any]] = np.float64 if self.exact else np.float32
        self.kind: int = TensorProto.DOUBLE if self.exact else TensorProto.FLOAT
        self.nodes = list[onnx.NodeProto]()
        self.folds: dict[str, Fold] = parent.folds if parent else {}
        self.looked_up: LookUp | None = None
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

    def number(self, value: float) -> str:
        """Return a constant of the graph's floats, a scalar."""
        return self.constant(np.array(value, self.floats))

    def ints(self, *values: int) -> str:
        """Return a constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def weight(self, name: str, value: Tensor) -> str:
        """Store a weight in the graph's floats under its own name, once."""
        return self.store(name, value.numpy().astype(self.floats))

    def cast(self, x: str, kind: int) -> str:
        """Return `x` as another type."""
        return self.op("Cast", x, to=kind)

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


def linear(graph: Graph, x: str, name: str, matrix: Matrix, *, bias: Tensor | None = None) -> str:
    """Return `x` (T, K) times the transpose of `matrix` (N, K), plus `bias` (N,)."""
    if isinstance(matrix, Tensor):
        y = graph.op("MatMul", x, graph.weight(name, matrix.T))
    elif graph.exact:
        y = _exact_product(graph, x, name, matrix)
    else:
        y = _product(graph, x, _fold(graph, name, matrix), matrix)
    return y if bias is None else graph.op("Add", y, graph.weight(f"{name}.bias", bias))


def lookup(graph: Graph, tokens: str, name: str, matrix: Matrix) -> str:
    """Return the rows (T, K) of an embedding, read from the same initialiser that a tied head multiplies with."""
    if isinstance(matrix, Tensor):
        # The head's own orientation, so that both can share it.
        columns_first = graph.op("Gather", graph.weight(name, matrix.T), tokens, axis=1)
        return graph.op("Transpose", columns_first, perm=[1, 0])
    fold, scales = _fold(graph, name, matrix), _scales(graph, name, matrix)
    nodes = Graph(graph)  # named as folded, for `onnx_map` has their result instead
    codes = nodes.op("Gather", fold.codes, tokens, axis=0)  # (T, bytes)
    if matrix.bits < 8:
        codes = _unpacked(nodes, codes, matrix.bits)
    signed = nodes.op("Sub", nodes.cast(codes, nodes.kind), nodes.number(1 << (matrix.bits - 1)))
    if graph.exact:
        blocks = nodes.op("Reshape", signed, nodes.ints(0, -1, BLOCK))
        signed = nodes.op("Reshape", _part(nodes, blocks, 2, BLOCK - 1), nodes.ints(0, -1))
    of_rows = nodes.cast(nodes.op("Gather", scales, tokens, axis=0), nodes.kind)
    found = nodes.op("Mul", _part(nodes, signed, 1, matrix.codes.shape[1]), of_rows)
    for node in nodes.nodes:
        node.name = f"{FOLDED_NODE}{name}/{node.output[0]}"
    graph.nodes += nodes.nodes
    graph.looked_up = LookUp(found, fold.codes, scales, matrix.bits, matrix.codes.shape[1], graph.exact)
    return found


def add_norm(graph: Graph, x: str, add: str, name: str, weight: Tensor, eps: float) -> tuple[str, str]:
    """Return the RMSNorm of x + add under the stored `weight` (D,), and the sum itself; `add` may be empty."""
    scale = graph.weight(name, weight)
    if not add or graph.exact:
        total = graph.op("Add", x, add) if add else x
        return graph.op("SimplifiedLayerNormalization", total, scale, axis=-1, epsilon=eps), total
    names = [graph.name("normed"), "", "", graph.name("sum")]
    kind = "SkipSimplifiedLayerNormalization"
    graph.nodes.append(helper.make_node(kind, [x, add, scale], names, domain=MICROSOFT, epsilon=eps))
    return names[0], names[3]


def silu(graph: Graph, x: str) -> str:
    """Return x * sigmoid(x)."""
    if graph.exact:
        return graph.op("Mul", x, graph.op("Sigmoid", x))
    return graph.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)


def transposed_product(graph: Graph, x: str, y: str, scale: float = 1.0) -> str:
    """Return `x` (..., T, K) times the transpose of `y` (..., W, K), times `scale`."""
    if not graph.exact:
        return graph.op("FusedMatMul", x, y, domain=MICROSOFT, transB=1, alpha=scale)
    turned = graph.op("Einsum", x, y, equation="...tk,...wk->...tw")
    return graph.op("Mul", turned, graph.number(scale))


def rotate(graph: Graph, x: str, width: int) -> str:
    """Return heads `x` (1, H, T, K) turned by the graph's inputs `cos` and `sin` (T, K / 2)."""
    a, b = split(graph, x, 3, width // 2, width // 2)
    turned = graph.op("Sub", graph.op("Mul", a, "cos"), graph.op("Mul", b, "sin"))
    rest = graph.op("Add", graph.op("Mul", b, "cos"), graph.op("Mul", a, "sin"))
    return graph.op("Concat", turned, rest, axis=3)


def split(graph: Graph, x: str, axis: int, *sizes: int) -> list[str]:
    """Return the parts of `x`, of so many places of an axis each."""
    return graph.ops("Split", x, graph.ints(*sizes), outputs=len(sizes), axis=axis)


def _product(graph: Graph, x: str, fold: Fold, matrix: QuantisedTensor) -> str:
    """Return the kernel's product of `x` (T, K) or, of an exact graph, (T, C * 128)."""
    rows, columns = matrix.codes.shape
    return graph.op(
        "MatMulNBits",
        x,
        fold.blocks_name,
        fold.scales_name,
        domain=MICROSOFT,
        K=fold.blocks * BLOCK if graph.exact else columns,
        N=rows,
        bits=matrix.bits,
        block_size=_block(graph, matrix),
        accuracy_level=4,
    )


def _exact_product(graph: Graph, x: str, name: str, matrix: QuantisedTensor) -> str:
    """Return the product of `x` (T, K), quantised as `PER_TOKEN` does it; the kernel sums whole numbers."""
    small = graph.cast(x, TensorProto.FLOAT)
    largest = graph.op("ReduceMax", graph.op("Abs", small), graph.ints(1), keepdims=1)
    largest = graph.op("Max", largest, graph.constant(np.array(LEAST, np.float32)))
    most = graph.constant(np.array(MOST, np.float32))
    inverse = graph.op("Mul", graph.op("Reciprocal", largest), most)  # torch divides a number by a tensor in two steps
    codes = graph.op("Round", graph.op("Mul", small, inverse))
    sums = _product(graph, with_sentinel(graph, codes, matrix.codes.shape[1]), _fold(graph, name, matrix), matrix)
    scale = graph.cast(graph.op("Div", largest, most), graph.kind)
    of_rows = graph.op("Transpose", graph.cast(_scales(graph, name, matrix), graph.kind), perm=[1, 0])
    return graph.op("Mul", graph.op("Mul", graph.cast(sums, graph.kind), scale), of_rows)


def with_sentinel(graph: Graph, codes: str, columns: int) -> str:
    """Return activation codes (T, K) as blocks of 127 columns and a sentinel of 127, (T, C * 128)."""
    width = BLOCK - 1
    missing = -columns % width
    if missing:
        codes = graph.op("Pad", codes, graph.ints(0, 0, 0, missing))
    count = -(-columns // width)  # not left to the runtime, which cannot infer it where there are no tokens
    blocks = graph.op("Reshape", codes, graph.ints(0, count, width))
    filled = graph.op("Pad", blocks, graph.ints(0, 0, 0, 0, 0, 1), graph.constant(np.array(MOST, np.float32)))
    return graph.op("Reshape", filled, graph.ints(0, count * BLOCK))


def _block(graph: Graph, matrix: QuantisedTensor) -> int:
    """Return the columns of a block, the sentinel included."""
    return BLOCK if graph.exact else block_size(matrix.codes.shape[1], matrix.bits)


def _scales(graph: Graph, name: str, matrix: QuantisedTensor) -> str:
    """Store a matrix's row scales (N, 1) once."""
    return graph.store(f"{name}.scale", matrix.row_scale.numpy().astype(np.float16))


def _unpacked(graph: Graph, codes: str, bits: int) -> str:
    """Return the codes (T, K) of bytes (T, B), the lowest bits first."""
    places = [graph.constant(np.array(place * bits, np.uint8)) for place in range(8 // bits)]
    shifted = [graph.op("BitShift", codes, place, direction="RIGHT") for place in places]
    mask = graph.constant(np.array((1 << bits) - 1, np.uint8))
    parts = [graph.op("Unsqueeze", graph.op("BitwiseAnd", x, mask), graph.ints(2)) for x in shifted]
    return graph.op("Reshape", graph.op("Concat", *parts, axis=2), graph.ints(0, -1))


def _fold(graph: Graph, name: str, matrix: QuantisedTensor) -> Fold:
    """Store a matrix and its row scales once, and add the nodes that make of them what the kernel takes.

    In an exact graph the kernel's scales are 1.
    """
    if name in graph.folds:
        return graph.folds[name]
    codes, bits = matrix.codes.numpy(), matrix.bits
    block = _block(graph, matrix)
    columns = block - 1 if graph.exact else block  # of the matrix, in a block
    blocks = -(-codes.shape[1] // columns)
    if graph.exact:
        padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % columns))).reshape(len(codes), -1, columns)
        codes = np.pad(padded, ((0, 0), (0, 0), (0, 1))).reshape(len(codes), -1)
    stored = pack_bits(codes, bits, block).reshape(len(codes), -1)[:, : -(-codes.shape[1] * bits // 8)]
    graph.store(name, stored)
    if graph.exact:
        scales = graph.store(f"{name}.ones", np.ones((len(codes), 1), np.float16))
    else:
        scales = _scales(graph, name, matrix)
    size, fill = block * bits // 8, sum(1 << (place + bits - 1) for place in range(0, 8, bits))
    missing = graph.ints(0, 0, 0, blocks * size - stored.shape[1])
    whole = graph.fold("Pad", name, missing, graph.constant(np.array(fill, np.uint8)))
    whole = graph.fold("Reshape", whole, graph.ints(0, blocks, size))
    expanded = graph.fold("Expand", scales, graph.ints(len(codes), blocks))
    expanded = graph.fold("Cast", expanded, to=TensorProto.FLOAT)
    found = Fold(name, scales, whole, expanded, len(codes), blocks, size, fill)
    graph.folds[name] = found
    return found


def _part(graph: Graph, x: str, axis: int, length: int) -> str:
    return graph.op("Slice", x, graph.ints(0), graph.ints(length), graph.ints(axis))
