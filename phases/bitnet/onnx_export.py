"""A packed model as one ONNX file: one pass of tokens through the stack, with caches as inputs and outputs.

For a plain decoder a pass is all there is. A TinyTitan takes up to `steps` passes per token; the caller runs the next
one with the tokens that have not halted, and gets the logits of those that have (`onnx_runtime.py`). Attention is one
node, `GroupQueryAttention`: it rotates, and appends to the cache in place. An exact file has it node by node in fp64;
whatever of the cache a token may not see is masked there, so buffers can be bound once, too.

Inputs (T tokens, W places of the cache, C of them that are seen, P width of a padded head): `tokens` (T), `cos`, `sin`
(W, P/2, of all places, times K^-1/4), `last_place` (1) of the tokens, `count` () that is C, `key_i`, `value_i`
(1, G, W, P) for each layer, in int8 where the file has steps for them (`cache_steps.py`).
In place of these an exact file has `cos`, `sin` (T, K/2), `mask` (T, W + T, 0 or -inf), `key_i`, `value_i`
(1, G, W, K).
Of a TinyTitan (S memory slots, Q earlier memory queries) `hidden` (T, D, of the pass before), `step` (), `last` (),
`going_on` (T, the chance that a token goes on so far), `slot_keys`, `slot_values` (S, D), `slot_fade` (S),
`past_queries` (Q, D), `query_index` (T, 4, into those and then this pass's own); unless exact, `positions` (1, T, rows
of `cos` and `sin`) and `bias` (1, 1, T, C, 0 or -inf).
Outputs: `logits`, `present_key_i`, `present_value_i`, which are to be bound to the inputs' own memory, or in an exact
file `present` (1, L * 2 G, T, K); and of a TinyTitan `normed` (of the tokens that halted here, whose logits they are),
`hidden_out`, `going_on_out`, `halted` (T) and `queries` (T, D).
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from phases.bitnet.memory_writer import writer_metadata
from phases.bitnet.onnx_binding import Floats
from phases.bitnet.onnx_graph import (
    IR_VERSION,
    MICROSOFT,
    OPSET,
    Graph,
    add_norm,
    linear,
    lookup,
    rotate,
    silu,
    split,
    transposed_product,
)
from phases.bitnet.onnx_heads import pad_heads, pad_rows, padded_width, unpadded
from phases.bitnet.onnx_map import FOLDED, LOOKED_UP
from phases.bitnet.packed import Architecture, PackedModel
from phases.cognate.memory import CONV_WIDTH

FORMAT = "2"  # of the inputs and outputs, which whoever opens a file relies on
HEAD = "embedding.weight"
INT8_CACHE: dict[str, Any] = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


def to_onnx(model: PackedModel, *, exact: bool = False, cache_steps: Floats | None = None) -> onnx.ModelProto:
    """Return the graph of a packed model. `exact` gives every token one activation scale, as BitNet has it, and all
    that is no quantised product in fp64, the inputs and outputs that are floats included.

    Weights in fp32 give the full-precision model with the same nodes otherwise. `cache_steps` (L, 2, G, P) gives one
    that is not exact a cache in int8.
    """
    graph = Graph(exact=exact)
    exporter = _Exporter(graph, model, cache_steps)
    inputs, outputs = exporter.inputs(), exporter.build()
    properties = {"format": FORMAT, "architecture": model.architecture.model_dump_json(), "exact": json.dumps(exact)}
    properties |= {FOLDED: json.dumps(list(graph.folds.values())), LOOKED_UP: json.dumps(graph.looked_up)}
    proto = helper.make_model(
        graph.proto("decoder", inputs, outputs),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=IR_VERSION,
        producer_name="agent-forge",
    )
    helper.set_model_props(proto, properties | writer_metadata(model))
    return proto


@dataclass(frozen=True)
class _Exporter:
    graph: Graph
    model: PackedModel
    cache_steps: Floats | None

    @property
    def a(self) -> Architecture:
        return self.model.architecture

    @property
    def grouped(self) -> bool:
        """Whether attention is one node, which knows no exact mode. Then all that is of tokens is (1, T, ...)."""
        return not self.graph.exact

    @property
    def _cached(self) -> int:
        """The type of keys and values."""
        return self.graph.kind if self.cache_steps is None else TensorProto.INT8

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Return the inputs' declarations."""
        a, grouped, floats = self.a, self.grouped, self.graph.kind
        width = padded_width(a.head_dim) if grouped else a.head_dim
        cache: list[int | str] = [1, a.n_kv_heads, "W", width]
        rotation: list[int | str] = ["W" if grouped else "T", width // 2]
        shapes: dict[str, tuple[int, list[int | str]]] = {"tokens": (TensorProto.INT64, ["T"])}
        shapes |= dict.fromkeys(("cos", "sin"), (floats, rotation))
        if grouped:
            shapes |= {"last_place": (TensorProto.INT32, [1]), "count": (TensorProto.INT32, [])}
        else:
            shapes |= {"mask": (floats, ["T", "W_plus_T"])}
        for layer in range(a.n_layers):
            shapes |= {f"{kind}_{layer}": (self._cached, cache) for kind in ("key", "value")}
        if a.titan is not None:
            shapes |= {
                "hidden": (floats, ["T", a.d_model]),
                "step": (TensorProto.INT64, []),
                "last": (TensorProto.BOOL, []),
                "going_on": (floats, ["T"]),
                "slot_keys": (floats, ["S", a.d_model]),
                "slot_values": (floats, ["S", a.d_model]),
                "slot_fade": (floats, ["S"]),
                "past_queries": (floats, ["Q", a.d_model]),
                "query_index": (TensorProto.INT64, ["T", CONV_WIDTH]),
            }
            if grouped:
                shapes |= {"positions": (TensorProto.INT64, [1, "T"]), "bias": (floats, [1, 1, "T", "C"])}
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()]

    def build(self) -> list[onnx.ValueInfoProto]:
        """Add all nodes and return the outputs."""
        g, a = self.graph, self.a
        x, pending, queries, present = self._batched(self._first()), "", "", list[str]()
        attend = self._attend_grouped if self.grouped else self._attend
        for layer in range(a.n_layers):
            if a.titan is not None and layer == a.n_layers // 2:
                normed, x = self._add_norm(x, pending, "memory.norm.weight")
                recalled, queries = self._remember(self._flat(normed))
                x, pending = g.op("Add", x, self._batched(recalled)), ""
            normed, x = self._add_norm(x, pending, f"blocks.{layer}.attention_norm.weight")
            attended, *parts = attend(normed, layer)
            present += parts
            normed, x = self._add_norm(x, attended, f"blocks.{layer}.mlp_norm.weight")
            pending = self._mlp(normed, layer)
        outputs = self._present(present)
        if a.titan is None:
            normed, _ = self._add_norm(x, pending, "norm.weight")
            self._rename(self._head(self._flat(normed)), "logits")
            return [*outputs, self._output("logits", ["T", a.vocab_size])]
        self._rename(queries, "queries")
        self._halt(self._flat(g.op("Add", x, pending)))
        outputs += [self._output("queries", ["T", a.d_model]), self._output("hidden_out", ["T", a.d_model])]
        outputs += [self._output("going_on_out", ["T"])]
        outputs += [helper.make_tensor_value_info("halted", TensorProto.BOOL, ["T"])]
        return [*outputs, self._output("logits", ["H", a.vocab_size]), self._output("normed", ["H", a.d_model])]

    def _present(self, parts: list[str]) -> list[onnx.ValueInfoProto]:
        """Return the outputs that keys and values are."""
        a = self.a
        if self.grouped:
            cache: list[int | str] = [1, a.n_kv_heads, "W", padded_width(a.head_dim)]
            return [helper.make_tensor_value_info(name, self._cached, cache) for name in parts]
        self._rename(self.graph.op("Concat", *parts, axis=1), "present")
        return [self._output("present", [1, len(parts) * a.n_kv_heads, "T", a.head_dim])]

    def _batched(self, x: str) -> str:
        return self.graph.op("Unsqueeze", x, self.graph.ints(0)) if self.grouped else x

    def _flat(self, x: str) -> str:
        return self.graph.op("Squeeze", x, self.graph.ints(0)) if self.grouped else x

    def _attend_grouped(self, x: str, layer: int) -> list[str]:
        """Return the attention's contribution (1, T, D) and the cache's parts behind it."""
        g, a, name = self.graph, self.a, f"blocks.{layer}.qkv"
        matrix = pad_heads(self.model.matrices[f"{name}.weight"], a.head_dim)
        bias = self.model.vectors.get(f"{name}.bias")
        qkv = linear(g, x, f"{name}.weight", matrix, bias=None if bias is None else pad_rows(bias, a.head_dim))
        attended, past = g.name("attended"), [f"key_{layer}", f"value_{layer}"]
        present = [f"present_{part}" for part in past]
        steps, quantised = list[str](), dict[str, Any]()
        if self.cache_steps is not None:
            pairs = zip(past, self.cache_steps[layer], strict=True)
            steps = [g.store(f"{part}.step", of_part[None, :, None]) for part, of_part in pairs]
            quantised = INT8_CACHE
        places = ["", ""] if a.titan is None else ["positions", "bias"]
        node = helper.make_node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "last_place", "count", "cos", "sin", *places, "", *steps],
            [attended, *present],
            domain=MICROSOFT,
            num_heads=a.n_heads,
            kv_num_heads=a.n_kv_heads,
            do_rotary=1,
            scale=1.0,  # the turns have it: scores that are not scaled take the runtime's faster product
            **quantised,
        )
        g.nodes.append(node)
        if padded_width(a.head_dim) > a.head_dim:
            attended = g.op("Gather", attended, g.constant(unpadded(a.head_dim, a.n_heads).numpy()), axis=2)
        return [self._linear(attended, f"blocks.{layer}.out"), *present]

    def _first(self) -> str:
        """Return what enters the stack: embedded tokens, or the pass before, plus the step's own vector."""
        g = self.graph
        embedded = lookup(g, "tokens", HEAD, self.model.matrices[HEAD])
        if self.a.titan is None:
            return embedded
        x = g.op("Where", g.op("Equal", "step", self._zero()), embedded, "hidden")
        return g.op("Add", x, g.op("Gather", self._vector("step_embedding"), "step", axis=0))

    def _attend(self, x: str, layer: int) -> list[str]:
        """Return the attention's contribution (T, D) and the new keys and values (1, G, T, K)."""
        g, a = self.graph, self.a
        qkv = self._linear(x, f"blocks.{layer}.qkv")
        heads = a.n_heads + 2 * a.n_kv_heads
        parted = g.op("Transpose", g.op("Reshape", qkv, g.ints(1, -1, heads, a.head_dim)), perm=[0, 2, 1, 3])
        qk, v = split(self.graph, parted, 1, a.n_heads + a.n_kv_heads, a.n_kv_heads)
        turned = rotate(g, qk, a.head_dim)
        q, k = split(self.graph, turned, 1, a.n_heads, a.n_kv_heads)
        past_k, past_v, group = f"key_{layer}", f"value_{layer}", a.n_heads // a.n_kv_heads
        if group > 1:  # queries that share keys become rows of one product
            q = g.op("Reshape", q, g.ints(1, a.n_kv_heads, -1, a.head_dim))
        scale = float(a.head_dim**-0.5)
        scores = [transposed_product(g, q, keys, scale) for keys in (past_k, k)]
        score = g.op("Concat", *scores, axis=-1)
        if group > 1:
            score = g.op("Reshape", score, self._grouped_shape())
        p = g.op("Softmax", g.op("Add", score, "mask"), axis=-1)
        if group > 1:
            p = g.op("Reshape", p, self._flat_shape())
        before, now = g.ops("Split", p, self._lengths(layer), outputs=2, axis=3)
        mixed = g.op("Add", g.op("MatMul", before, past_v), g.op("MatMul", now, v))
        if group > 1:
            mixed = g.op("Reshape", mixed, g.ints(1, a.n_heads, -1, a.head_dim))
        flat = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(-1, a.n_heads * a.head_dim))
        return [self._linear(flat, f"blocks.{layer}.out"), k, v]

    def _mlp(self, x: str, layer: int) -> str:
        g = self.graph
        gate, up = split(self.graph, self._linear(x, f"blocks.{layer}.gate_up"), -1, self.a.hidden, self.a.hidden)
        return self._linear(g.op("Mul", silu(self.graph, gate), up), f"blocks.{layer}.down")

    def _remember(self, normed: str) -> tuple[str, str]:
        """Return what memory adds (T, D) and this pass's queries, as `LongTermMemory.recall` computes them."""
        g, titan = self.graph, self.a.titan
        assert titan is not None
        queries = self._linear(normed, "memory.q")
        pool = g.op("Concat", "past_queries", queries, axis=0)
        taps = g.op("Mul", g.op("Gather", pool, "query_index", axis=0), self._vector("memory.q_conv"))
        query = g.op("ReduceSum", taps, g.ints(1), keepdims=0)
        match = g.op("Sub", transposed_product(g, query, "slot_keys"), "slot_fade")
        top, slots = g.ops("TopK", match, g.ints(titan.memory.top_k), outputs=2, axis=1)
        null = g.op("Mul", self._part(top, 1), g.number(0))
        # A slot that is not there has a fade of 1e30 and not infinity, which times 0 would not be 0.
        weights = g.op("Softmax", g.op("Concat", null, top, axis=1), axis=1)
        weights = g.op("Slice", weights, g.ints(1), g.ints(1 + titan.memory.top_k), g.ints(1))
        chosen = g.op("Gather", "slot_values", slots, axis=0)  # (T, k, D)
        summed = g.op("MatMul", g.op("Unsqueeze", weights, g.ints(1)), chosen)
        recalled = self._linear(g.op("Squeeze", summed, g.ints(1)), "memory.o")
        matched = g.op("ReduceSum", weights, g.ints(1), keepdims=1)
        inner = silu(self.graph, self._linear(recalled, "memory.mlp.0"))
        shown = g.op("Add", recalled, g.op("Mul", matched, self._linear(inner, "memory.mlp.2")))
        return g.op("Mul", g.op("Sigmoid", self._gate(normed, "memory.read_gate")), shown), queries

    def _halt(self, x: str) -> None:
        """Decide which tokens halt and give their logits."""
        g, titan = self.graph, self.a.titan
        assert titan is not None
        chance = g.op("Sigmoid", g.op("Neg", self._gate(x, "halting.linear")))
        going_on = g.op("Mul", "going_on", g.op("Squeeze", chance, g.ints(1)))
        sure = g.op("Sub", g.number(1), going_on)
        threshold = g.number(titan.halt_threshold)
        halted = g.op("Or", g.op("GreaterOrEqual", sure, threshold), "last")
        for value, name in ((x, "hidden_out"), (going_on, "going_on_out"), (halted, "halted")):
            self._rename(value, name)
        # Of no token that halts, the products have no rows and take no time.
        normed, _ = self._add_norm(g.op("Compress", x, halted, axis=0), "", "norm.weight")
        self._rename(self._head(normed), "logits")
        self._rename(normed, "normed")

    def _head(self, normed: str) -> str:
        return linear(self.graph, normed, HEAD if self.a.tied else "head.weight", self.model.head)

    def _linear(self, x: str, name: str) -> str:
        matrix, bias = self.model.matrices[f"{name}.weight"], self.model.vectors.get(f"{name}.bias")
        return linear(self.graph, x, f"{name}.weight", matrix, bias=bias)

    def _gate(self, x: str, name: str) -> str:
        weight, bias = (self.model.vectors[f"{name}.{part}"] for part in ("weight", "bias"))
        g = self.graph
        stored = g.weight(f"{name}.weight", weight), g.weight(f"{name}.bias", bias)
        return g.op("Gemm", x, *stored, transB=1)

    def _add_norm(self, x: str, add: str, weight: str) -> tuple[str, str]:
        """Return the RMSNorm of x + add and the sum itself; `add` may be empty."""
        return add_norm(self.graph, x, add, weight, self.model.vectors[weight], self.a.eps)

    def _part(self, x: str, width: int) -> str:
        g = self.graph
        return g.op("Slice", x, g.ints(0), g.ints(width), g.ints(1))

    def _zero(self) -> str:
        return self.graph.constant(np.array(0))

    def _lengths(self, layer: int) -> str:
        """Return the vector (W, T)."""
        g = self.graph
        past = g.op("Shape", f"key_{layer}", start=2, end=3)
        return g.op("Concat", past, g.op("Shape", "tokens"), axis=0)

    def _grouped_shape(self) -> str:
        """Return the shape (1, H, T, -1) of scores."""
        g = self.graph
        return g.op("Concat", g.ints(1, self.a.n_heads), g.op("Shape", "tokens"), g.ints(-1), axis=0)

    def _flat_shape(self) -> str:
        """Return the shape (1, G, H / G * T, -1) of scores."""
        g = self.graph
        rows = g.op("Mul", g.op("Shape", "tokens"), g.ints(self.a.n_heads // self.a.n_kv_heads))
        return g.op("Concat", g.ints(1, self.a.n_kv_heads), rows, g.ints(-1), axis=0)

    def _vector(self, name: str) -> str:
        return self.graph.weight(name, self.model.vectors[name])

    def _rename(self, value: str, name: str) -> None:
        self.graph.nodes.append(helper.make_node("Identity", [value], [name]))

    def _output(self, name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self.graph.kind, shape)
