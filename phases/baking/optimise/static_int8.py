"""Eight bits with ranges fixed by calibration: the runtime quantises each input once, without looking for its range.

Some channels of a product's input are far larger than the rest, and one range for all would leave the rest a few steps.
Two remedies, each costing a little time: divide each channel by its own factor and multiply its weights instead
(SmoothQuant, Xiao et al. 2022), or let the largest channels go through a small fp32 product of their own (LLM.int8(),
Dettmers et al. 2022). Which a product gets is decided by the error to expect: rounding to steps of d adds a noise of
variance d^2/12, so it follows from the channels' ranges and the weights. What weights lose on average goes to the bias.

Tables that are looked up get a scale for each row. Shapes: T rows, K channels, N outputs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from phases.baking.optimise.masks import bound_masks
from phases.baking.optimise.rewriting import (
    Channels,
    Floats,
    by_input,
    matrices,
    observe,
    products,
    replace,
    save,
    split_gemms,
    store,
    use_microsoft_operators,
)
from phases.baking.optimise.session import Feeds, read_model
from phases.bitnet.onnx_graph import MICROSOFT

APART = 8  # channels that go through fp32 where that is the remedy
SMOOTHING = 0.7  # share of a channel's size that goes into its weights
_WORTH = 1.5  # times that the error must fall for a dearer remedy
_LEAST_ROWS = 1024  # of a table for its scales to be worth it
_TINY = 1e-6


@dataclass(frozen=True)
class Plan:
    """How the input of products becomes 8 bits: `round(x / factors / step) + zero`, but for the channels `apart`."""

    factors: Floats  # (K,)
    apart: Floats  # which, in order
    step: np.float32
    zero: np.uint8
    error: float  # variance that rounding adds to the outputs, summed over N

    @property
    def smooth(self) -> bool:
        """Whether channels are divided at all."""
        return bool((self.factors != 1).any())


def int8_static(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
    """Quantise products with constant matrices, inputs and weights, and the tables that are looked up."""
    model = read_model(source)
    split_gemms(model)
    weights = matrices(model)
    groups = by_input(products(model.graph, weights))
    seen = observe(model, groups, calibration)
    for number, (x, nodes) in enumerate(groups.items()):
        if x in seen:
            plan = best_plan(seen[x], np.concatenate([weights[node.input[1]] for node in nodes], 1))
            _quantise(model, nodes, [weights[node.input[1]] for node in nodes], plan, seen[x], f"int8_{number}")
    _quantise_tables(model)
    bound_masks(model)
    use_microsoft_operators(model)
    save(model, out)


def best_plan(seen: Channels, weight: Floats) -> Plan:
    """Return the cheapest of nothing, smoothing and a split whose error is near that of the best. `weight`: (K, N)."""
    plain, none = np.ones(len(weight), np.float32), np.array([], np.int64)
    sizes = np.abs(weight).max(1)
    factors = np.maximum(seen.largest, _TINY) ** SMOOTHING / np.maximum(sizes, _TINY) ** (1 - SMOOTHING)
    factors = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    plans = [_plan(seen, weight, plain, none), _plan(seen, weight, factors, none)]
    if len(weight) > 4 * APART:
        plans.append(_plan(seen, weight, plain, np.sort(np.argsort(seen.largest)[-APART:])))
    enough = _WORTH * min(plan.error for plan in plans)
    return next(plan for plan in plans if plan.error <= enough)


def _plan(seen: Channels, weight: Floats, factors: Floats, apart: Floats) -> Plan:
    kept = np.ones(len(weight), bool)
    kept[apart] = False
    low, high = min(0.0, (seen.low / factors)[kept].min()), max(0.0, (seen.high / factors)[kept].max())
    step = max((high - low) / 255, _TINY)
    scaled = (weight * factors[:, None])[kept]
    inputs = step**2 / 12 * np.square(scaled).sum()
    steps = np.abs(scaled).max(0) / 127
    matrix = np.square(steps).sum() / 12 * (seen.square / factors**2)[kept].sum()
    return Plan(factors, apart, np.float32(step), np.uint8(round(-low / step)), float(inputs + matrix))


def _quantise(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[Floats],
    plan: Plan,
    seen: Channels,
    prefix: str,
) -> None:
    """Replace products that share an input, and the biases that follow them."""
    x, q, step, zero = nodes[0].input[0], f"{prefix}_x", f"{prefix}_step", f"{prefix}_zero"
    stored: dict[str, Floats] = {step: np.asarray(plan.step), zero: np.asarray(plan.zero)}
    made, read, picked = list[onnx.NodeProto](), x, f"{prefix}_picked"
    if plan.smooth:
        stored[f"{prefix}_divisors"], read = 1 / plan.factors, f"{prefix}_smooth"
        made.append(helper.make_node("Mul", [x, f"{prefix}_divisors"], [read]))
    made.append(helper.make_node("QuantizeLinear", [read, step, zero], [q]))
    if len(plan.apart):
        stored[f"{prefix}_apart"] = plan.apart
        made.append(helper.make_node("Gather", [x, f"{prefix}_apart"], [picked], axis=-1))
    replaced = list(nodes)
    for number, (node, weight) in enumerate(zip(nodes, weights, strict=True)):
        name, (add, bias) = f"{prefix}_{number}", _bias_of(model, node)
        y = (add or node).output[0]
        replaced += [add] if add else []
        scaled = weight * plan.factors[:, None]
        scaled[plan.apart] = 0
        codes, scales = _codes(scaled, 0)
        lost = (seen.mean / plan.factors) @ (scaled - codes * scales)
        stored |= {f"{name}_codes": codes, f"{name}_scales": scales, f"{name}_bias": (bias + lost).astype(np.float32)}
        inputs = [q, f"{name}_codes", step, f"{name}_scales", zero, "", f"{name}_bias"]
        rest = f"{name}_rest" if len(plan.apart) else y
        made.append(helper.make_node("MatMulIntegerToFloat", inputs, [rest], name=name, domain=MICROSOFT))
        if len(plan.apart):
            stored[f"{name}_apart"] = weight[plan.apart]
            made.append(helper.make_node("MatMul", [picked, f"{name}_apart"], [f"{name}_few"], name=f"{name}_few"))
            made.append(helper.make_node("Add", [rest, f"{name}_few"], [y]))
    store(model, stored)
    replace(model.graph, replaced, made)


def _bias_of(model: onnx.ModelProto, node: onnx.NodeProto) -> tuple[onnx.NodeProto | None, Floats]:
    """Return the node that adds a constant vector to a product, if nothing else reads that, and the vector."""
    readers = [each for each in model.graph.node if node.output[0] in each.input]
    if len(readers) == 1 and readers[0].op_type == "Add":
        (other,) = [name for name in readers[0].input if name != node.output[0]] or [""]
        for tensor in model.graph.initializer:
            if tensor.name == other and len(tensor.dims) == 1:
                return readers[0], onnx.numpy_helper.to_array(tensor)
    return None, np.zeros(1, np.float32)


def _codes(values: Floats, axis: int) -> tuple[Floats, Floats]:
    """Return int8 codes of a matrix and the scales of its slices along `axis`."""
    scales = np.maximum(np.abs(values).max(axis), _TINY) / 127
    spread = np.expand_dims(scales, axis)
    return np.rint(values / spread).astype(np.int8), scales.astype(np.float32)


def _quantise_tables(model: onnx.ModelProto) -> None:
    """Store tables that are only looked up, row by row, in 8 bits."""
    tables = {name: table for name, table in matrices(model).items() if len(table) >= _LEAST_ROWS}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for node in [n for n in model.graph.node if n.op_type == "Gather" and n.input[0] in tables]:
        name, index = node.input
        if readers[name] > 1 or any(each.name == "axis" and each.i for each in node.attribute):
            continue
        codes, scales = _codes(tables[name], 1)
        parts = {part: f"{name}_{part}" for part in ("codes", "scales", "picked", "row", "scale")}
        store(model, {parts["codes"]: codes, parts["scales"]: scales[:, None]})
        made = [
            helper.make_node("Gather", [parts["codes"], index], [parts["picked"]]),
            helper.make_node("Cast", [parts["picked"]], [parts["row"]], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gather", [parts["scales"], index], [parts["scale"]]),
            helper.make_node("Mul", [parts["row"], parts["scale"]], [node.output[0]]),
        ]
        replace(model.graph, [node], made)
