"""A TinyTitan's reading of a piece of text as one ONNX graph, with the ponder loop as a `Loop` node.

`phases.cognate.titan` computes at each ponder step the tokens that have not halted and no others. Here all tokens of a
piece go through each step until all have halted, and those that halted before keep what they had, which comes to the
same. Memory is read here; it is written between segments, by the model's own code (`titan_runtime.py`).

Node by node and not by torch.onnx.export: torch's `while_loop` can say the same, but with the sizes of rows, tokens and
past left open, torch 2.13 had not traced a model of one layer and width 16 after eight CPU seconds. This takes
three for eleven layers of width 216, needs no further package, and puts the runtime's own kernels in place.

Shapes: B rows, T tokens of a piece, S ponder steps, L layers, H heads, K head dimension, D = H * K, P places of the
window before the piece, M memory slots (at least `top_k`), V vocabulary.
Inputs: `tokens` (B, T); `position` () of the first of them in the text; `past_keys`, `past_values` (S, L, B, H, P, K),
of which those places count that are true in `seen` (P); `past_queries` (S, B, 3, D), of memory, by the tokens before;
`slot_keys`, `slot_values` (B, M, D) and `slot_fade` (B, M), the memory.
Outputs: `logits` (B, T, V); `outputs` (B, T, D), normalised; `steps` (B, T) that each token ran; `keys`, `values`
(S, L, B, H, T, K) of these tokens; `queries` (S, B, 3, D), the next piece's `past_queries`.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from phases.bitnet.memory_writer import ABSENT
from phases.bitnet.onnx_graph import MICROSOFT, Graph, add_norm, linear, lookup, silu, split, transposed_product
from phases.bitnet.packed import Architecture, PackedModel
from phases.cognate.memory import CONV_WIDTH
from phases.cognate.titan import TitanConfig

BACK = CONV_WIDTH - 1  # tokens before a piece whose memory queries it needs
HEAD = "embedding.weight"
_CARRIED = ("hidden", "going_on", "steps", "keys", "values", "queries")
_FLOAT, _INT, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def titan_graph(model: PackedModel) -> onnx.GraphProto:
    """Return the graph of a packed TinyTitan."""
    graph, a = Graph(), model.architecture
    _Piece(graph, model).build()
    return graph.proto("titan", _inputs(a), _outputs(a))


def _inputs(a: Architecture) -> list[onnx.ValueInfoProto]:
    cache: list[int | str] = [a.steps, a.n_layers, "batch", a.n_heads, "places", a.head_dim]
    slots: list[int | str] = ["batch", "slots", a.d_model]
    return [
        helper.make_tensor_value_info("tokens", _INT, ["batch", "length"]),
        helper.make_tensor_value_info("position", _INT, []),
        helper.make_tensor_value_info("seen", _BOOL, ["places"]),
        helper.make_tensor_value_info("past_keys", _FLOAT, cache),
        helper.make_tensor_value_info("past_values", _FLOAT, cache),
        helper.make_tensor_value_info("past_queries", _FLOAT, [a.steps, "batch", BACK, a.d_model]),
        helper.make_tensor_value_info("slot_keys", _FLOAT, slots),
        helper.make_tensor_value_info("slot_values", _FLOAT, slots),
        helper.make_tensor_value_info("slot_fade", _FLOAT, slots[:2]),
    ]


def _outputs(a: Architecture) -> list[onnx.ValueInfoProto]:
    cache: list[int | str] = [a.steps, a.n_layers, "batch", a.n_heads, "length", a.head_dim]
    return [
        helper.make_tensor_value_info("logits", _FLOAT, ["batch", "length", a.vocab_size]),
        helper.make_tensor_value_info("outputs", _FLOAT, ["batch", "length", a.d_model]),
        helper.make_tensor_value_info("steps", _INT, ["batch", "length"]),
        helper.make_tensor_value_info("keys", _FLOAT, cache),
        helper.make_tensor_value_info("values", _FLOAT, cache),
        helper.make_tensor_value_info("queries", _FLOAT, [a.steps, "batch", BACK, a.d_model]),
    ]


@dataclass(frozen=True)
class _Shared:
    """Names of what all ponder steps of a piece share."""

    cos: str  # (T, K / 2)
    sin: str  # (T, K / 2)
    mask: str  # (T, P + T), 0 or so little that nothing is left of it
    keys: str  # (S * L, B, H, P, K)
    values: str  # (S * L, B, H, P, K)
    lengths: str  # (2), P and T
    slot_values: str  # (B * M, D)
    slot_fade: str  # (B, 1, M)
    slot_rows: str  # (B, 1, 1), index of each row's first slot


@dataclass(frozen=True)
class _Piece:
    """Builds what is around the loop."""

    graph: Graph
    model: PackedModel

    def build(self) -> None:
        """Add all nodes."""
        g, a = self.graph, self.model.architecture
        shared = self._shared()
        flat = lookup(g, g.op("Reshape", "tokens", g.ints(-1)), HEAD, self.model.matrices[HEAD])
        hidden = g.op("Reshape", flat, g.op("Concat", g.op("Shape", "tokens"), g.ints(a.d_model), axis=0))
        batch, length = (g.op("Shape", "tokens", start=axis, end=axis + 1) for axis in (0, 1))
        size = g.op("Concat", g.ints(a.steps, a.n_layers), batch, g.ints(a.n_heads), length, g.ints(a.head_dim), axis=0)
        rows = g.op("Concat", g.ints(a.steps), batch, length, g.ints(a.d_model), axis=0)
        one, none = (helper.make_tensor("value", kind, [1], [fill]) for kind, fill in ((_FLOAT, 1), (_INT, 0)))
        start = {
            "hidden": hidden,
            "going_on": g.op("ConstantOfShape", g.op("Shape", "tokens"), value=one),
            "steps": g.op("ConstantOfShape", g.op("Shape", "tokens"), value=none),
            "keys": g.op("ConstantOfShape", size),
            "values": g.op("ConstantOfShape", size),
            "queries": g.op("ConstantOfShape", rows),
        }
        body = _Step(Graph(g), self.model, shared).body()
        trips, always = g.constant(np.array(a.steps)), g.constant(np.array(True))
        ended = g.ops("Loop", trips, always, *(start[name] for name in _CARRIED), outputs=len(_CARRIED), body=body)
        end = dict(zip(_CARRIED, ended, strict=True))
        outputs = _normed(g, self.model, end["hidden"], "norm.weight")
        head = HEAD if a.tied else "head.weight"
        queries = g.op("Concat", "past_queries", end["queries"], axis=2)
        last = g.op("Slice", queries, length, g.ints(np.iinfo(np.int64).max), g.ints(2))
        named = {"logits": linear(g, outputs, head, self.model.head), "outputs": outputs, "queries": last}
        for name, value in (named | {name: end[name] for name in ("steps", "keys", "values")}).items():
            g.nodes.append(helper.make_node("Identity", [value], [name]))

    def _shared(self) -> _Shared:
        g, a = self.graph, self.model.architecture
        places, length = (g.op("Shape", name, start=axis, end=axis + 1) for name, axis in (("seen", 0), ("tokens", 1)))
        here = g.op("Range", g.constant(np.array(0)), g.op("Squeeze", length), g.constant(np.array(1)))
        column = g.op("Unsqueeze", here, g.ints(1))
        frequencies = a.rope_theta ** (-np.arange(0, a.head_dim, 2) / a.head_dim)
        where = g.op("Cast", g.op("Add", column, "position"), to=TensorProto.DOUBLE)
        angles = g.op("Mul", where, g.constant(frequencies))
        cos, sin = (g.op("Cast", g.op(kind, angles), to=_FLOAT) for kind in ("Cos", "Sin"))
        seen = g.op("Expand", "seen", g.op("Concat", length, places, axis=0))
        allowed = g.op("Concat", seen, g.op("LessOrEqual", here, column), axis=1)
        zero, never = (g.number(value) for value in (0, -ABSENT))
        keys, values = (
            g.op("Reshape", name, self._flat_size(name), allowzero=1) for name in ("past_keys", "past_values")
        )
        batch, slots = (g.op("Squeeze", g.op("Shape", "slot_fade", start=axis, end=axis + 1)) for axis in (0, 1))
        rows = g.op("Mul", g.op("Range", g.constant(np.array(0)), batch, g.constant(np.array(1))), slots)
        return _Shared(
            cos,
            sin,
            g.op("Where", allowed, zero, never),
            keys,
            values,
            g.op("Concat", places, length, axis=0),
            g.op("Reshape", "slot_values", g.ints(-1, a.d_model)),
            g.op("Unsqueeze", "slot_fade", g.ints(1)),
            g.op("Reshape", rows, g.ints(-1, 1, 1)),
        )

    def _flat_size(self, cache: str) -> str:
        """Return the shape (S * L, B, H, P, K) of a cache."""
        g, a = self.graph, self.model.architecture
        return g.op("Concat", g.ints(a.steps * a.n_layers), g.op("Shape", cache, start=2), axis=0)


@dataclass(frozen=True)
class _Step:
    """Builds the loop's body, a ponder step of all tokens."""

    graph: Graph
    model: PackedModel
    shared: _Shared

    @property
    def a(self) -> Architecture:
        return self.model.architecture

    @property
    def titan(self) -> TitanConfig:
        assert self.a.titan is not None
        return self.a.titan

    def body(self) -> onnx.GraphProto:
        """Return the body: from the step's number and what is carried to whether to go on and what is carried."""
        g, a = self.graph, self.a
        carried = {name: f"{name}_before" for name in _CARRIED}
        active = self._active(carried["going_on"])
        row, head = (g.op("Unsqueeze", active, g.ints(*axes)) for axes in ((2,), (1, 3)))
        then = {name: g.op("Gather", carried[name], "step", axis=0) for name in ("keys", "values", "queries")}
        layers = [split(self.graph, then[name], 0, *[1] * a.n_layers) for name in ("keys", "values")]
        x, pending, keys, values, queries = self._start(carried["hidden"]), "", list[str](), list[str](), ""
        for layer in range(a.n_layers):
            if layer == a.n_layers // 2:
                normed, x = _add_norm(g, self.model, x, pending, "memory.norm.weight")
                recalled, queries = self._recall(normed, then["queries"], row)
                x, pending = g.op("Add", x, recalled), ""
            normed, x = _add_norm(g, self.model, x, pending, f"blocks.{layer}.attention_norm.weight")
            q, k, v = self._project(normed, layer)
            for found, before, own in ((keys, layers[0], k), (values, layers[1], v)):
                found.append(g.op("Where", head, own, before[layer]))  # (1, B, H, T, K)
            attended = self._attend(q, keys[-1], values[-1], layer)
            normed, x = _add_norm(g, self.model, x, attended, f"blocks.{layer}.mlp_norm.weight")
            gate, up = split(self.graph, self._linear(normed, f"blocks.{layer}.gate_up"), 2, a.hidden, a.hidden)
            pending = self._linear(g.op("Mul", silu(self.graph, gate), up), f"blocks.{layer}.down")
        x = g.op("Add", x, pending)
        chance = g.op("Sigmoid", g.op("Neg", g.op("Squeeze", self._gate(x, "halting.linear"), g.ints(2))))
        stacked = [g.op("Concat", *parts, axis=0) for parts in (keys, values)]
        after = {
            "hidden": g.op("Where", row, x, carried["hidden"]),
            "going_on": g.op("Where", active, g.op("Mul", carried["going_on"], chance), carried["going_on"]),
            "steps": g.op("Add", carried["steps"], g.op("Cast", active, to=_INT)),
            "keys": self._from_here_on(stacked[0], carried["keys"], 6),
            "values": self._from_here_on(stacked[1], carried["values"], 6),
            "queries": self._from_here_on(queries, carried["queries"], 4),
        }
        number = g.op("ReduceMax", g.op("Cast", self._active(after["going_on"]), to=TensorProto.INT32), keepdims=0)
        return self._proto(g.op("Cast", number, to=_BOOL), carried, after)

    def _proto(self, going_on: str, carried: dict[str, str], after: dict[str, str]) -> onnx.GraphProto:
        """Return the body's graph. It declares types and no shapes, and sees the weights outside."""
        kinds = {name: _INT if name == "steps" else _FLOAT for name in _CARRIED}
        inputs = [helper.make_tensor_value_info(n, k, []) for n, k in (("step", _INT), ("condition", _BOOL))]
        inputs += [helper.make_tensor_value_info(carried[name], kinds[name], None) for name in _CARRIED]
        outputs = [helper.make_tensor_value_info(going_on, _BOOL, [])]
        outputs += [helper.make_tensor_value_info(after[name], kinds[name], None) for name in _CARRIED]
        return helper.make_graph(self.graph.nodes, "ponder", inputs, outputs)

    def _active(self, going_on: str) -> str:
        """Return which tokens have not halted, (B, T)."""
        g = self.graph
        halted = g.op("Sub", g.number(1), going_on)
        return g.op("Less", halted, g.number(self.titan.halt_threshold))

    def _start(self, hidden: str) -> str:
        g, name = self.graph, "step_embedding"
        return g.op("Add", hidden, g.op("Gather", g.store(name, self.model.vectors[name].numpy()), "step", axis=0))

    def _from_here_on(self, new: str, old: str, rank: int) -> str:
        """Return `new` at this step and all later ones, until these are computed, and `old` at those before."""
        g = self.graph
        steps = g.constant(np.arange(self.a.steps).reshape(-1, *[1] * (rank - 1)))
        return g.op("Where", g.op("GreaterOrEqual", steps, "step"), g.op("Unsqueeze", new, g.ints(0)), old)

    def _project(self, x: str, layer: int) -> tuple[str, str, str]:
        """Return query, key and value (B, H, T, K), the first two rotated."""
        g, heads = self.graph, self.a.n_heads
        qkv = g.op("Reshape", self._linear(x, f"blocks.{layer}.qkv"), g.ints(0, 0, 3 * heads, self.a.head_dim))
        qk, v = split(self.graph, g.op("Transpose", qkv, perm=[0, 2, 1, 3]), 1, 2 * heads, heads)
        angles = self.shared.cos, self.shared.sin
        q, k = split(self.graph, g.op("RotaryEmbedding", qk, g.ints(0), *angles, domain=MICROSOFT), 1, heads, heads)
        return q, k, v

    def _attend(self, q: str, k: str, v: str, layer: int) -> str:
        """Return what attention adds (B, T, D), to the window and to `k`, `v` (1, B, H, T, K) of the piece."""
        g, a, shared = self.graph, self.a, self.shared
        index = g.op("Add", g.op("Mul", "step", g.constant(np.array(a.n_layers))), g.constant(np.array(layer)))
        k, v = (g.op("Squeeze", x, g.ints(0)) for x in (k, v))
        past_k, past_v = (g.op("Gather", cache, index, axis=0) for cache in (shared.keys, shared.values))
        scale = float(a.head_dim**-0.5)
        scores = [transposed_product(g, q, x, scale) for x in (past_k, k)]
        p = g.op("Softmax", g.op("Add", g.op("Concat", *scores, axis=3), shared.mask), axis=3)
        before, now = g.ops("Split", p, shared.lengths, outputs=2, axis=3)
        mixed = g.op("Add", g.op("MatMul", before, past_v), g.op("MatMul", now, v))
        flat = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(0, 0, a.d_model))
        return self._linear(flat, f"blocks.{layer}.out")

    def _recall(self, normed: str, before: str, row: str) -> tuple[str, str]:
        """Return what memory adds (B, T, D), and the queries (B, T, D) as later tokens see them."""
        g, shared, top_k = self.graph, self.shared, self.titan.memory.top_k
        queries = g.op("Where", row, self._linear(normed, "memory.q"), before)
        pool = g.op("Concat", g.op("Gather", "past_queries", "step", axis=0), queries, axis=1)
        taps, length = self.model.vectors["memory.q_conv"].numpy(), g.op("Shape", "tokens", start=1)
        parts = list[str]()
        for back in range(CONV_WIDTH):
            end = g.op("Add", length, g.ints(back))
            shifted = g.op("Slice", pool, g.ints(back), end, g.ints(1))
            parts.append(g.op("Mul", shifted, g.store(f"memory.q_conv.{back}", taps[back])))
        query = g.op("Sum", *parts)
        match = transposed_product(g, query, "slot_keys")
        top, slots = g.ops("TopK", g.op("Sub", match, shared.slot_fade), g.ints(top_k), outputs=2, axis=2)
        null = g.op("Mul", g.op("Slice", top, g.ints(0), g.ints(1), g.ints(2)), g.number(0))
        weights = g.op("Softmax", g.op("Concat", null, top, axis=2), axis=2)
        weights = g.op("Slice", weights, g.ints(1), g.ints(1 + top_k), g.ints(2))
        chosen = g.op("Gather", shared.slot_values, g.op("Add", slots, shared.slot_rows), axis=0)  # (B, T, top_k, D)
        summed = g.op("Squeeze", g.op("MatMul", g.op("Unsqueeze", weights, g.ints(2)), chosen), g.ints(2))
        recalled = self._linear(summed, "memory.o")
        matched = g.op("ReduceSum", weights, g.ints(2), keepdims=1)
        thought = self._linear(silu(self.graph, self._linear(recalled, "memory.mlp.0")), "memory.mlp.2")
        shown = g.op("Add", recalled, g.op("Mul", matched, thought))
        return g.op("Mul", g.op("Sigmoid", self._gate(normed, "memory.read_gate")), shown), queries

    def _gate(self, x: str, name: str) -> str:
        """Return a logit (B, T, 1) of each token, in a form that no quantiser takes for a matrix product."""
        g = self.graph
        weight, bias = (self.model.vectors[f"{name}.{part}"].numpy() for part in ("weight", "bias"))
        products = g.op("Mul", x, g.store(f"{name}.weight", weight.reshape(-1)))
        return g.op("Add", g.op("ReduceSum", products, g.ints(2), keepdims=1), g.store(f"{name}.bias", bias))

    def _linear(self, x: str, name: str) -> str:
        matrix, bias = self.model.matrices[f"{name}.weight"], self.model.vectors.get(f"{name}.bias")
        return linear(self.graph, x, f"{name}.weight", matrix, bias=bias)


def _normed(graph: Graph, model: PackedModel, x: str, weight: str) -> str:
    return _add_norm(graph, model, x, "", weight)[0]


def _add_norm(g: Graph, model: PackedModel, x: str, add: str, weight: str) -> tuple[str, str]:
    return add_norm(g, x, add, weight, model.vectors[weight], model.architecture.eps)
