"""Masks that shut out what they should and no more, for the sake of speed.

A mask adds -1e9, or the like, to the scores of what is not to be read. What the runtime's softmax makes of that is the
smallest number its exponential gives, a denormal, and an Intel core takes a hundred cycles to multiply with one: the
product with the values then costs more than all the rest of a layer. At -60 the exponential is 1e-26, an ordinary
number that no fp32 sum notices unless what is shut out scores 40 above everything that is let in.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from phases.baking.optimise.rewriting import save, store
from phases.baking.optimise.session import Feeds, read_model

LOWEST = -60.0
_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "Einsum", "Conv"}
_BOUND = "lowest_of_masks"


def bounded_masks(source: Path, out: Path, calibration: Sequence[Feeds]) -> None:
    """Write the file with its masks bounded. Raises `ValueError` where it has none."""
    model = read_model(source)
    if not bound_masks(model):
        raise ValueError("no softmax over scores that a mask was added to")
    save(model, out)


def bound_masks(model: onnx.ModelProto) -> int:
    """Bound from below what is added to scores before a softmax, once for each mask; return how many there are."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    masks = dict[str, list[onnx.NodeProto]]()
    for node in model.graph.node:
        add = made_by.get(node.input[0]) if node.op_type == "Softmax" else None
        if add is not None and add.op_type == "Add":
            others = [name for name in add.input if not _is_product(name, made_by)]
            if len(others) == 1:
                masks.setdefault(others[0], []).append(add)
    for mask, adds in masks.items():
        bounded = f"{mask}_bounded"
        for add in adds:
            add.input[list(add.input).index(mask)] = bounded
        node = helper.make_node("Max", [mask, _BOUND], [bounded], name=bounded)
        place = list(model.graph.node).index(adds[0])
        model.graph.node.insert(place, node)
    if masks:
        store(model, {_BOUND: np.array(LOWEST, np.float32)})
    return len(masks)


def _is_product(name: str, made_by: dict[str, onnx.NodeProto]) -> bool:
    """Say whether a value comes of a product, over whatever else lies between."""
    waiting, seen = [name], set[str]()
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.op_type in _PRODUCTS:
            return True
        fresh = set(node.input) - seen if node is not None else ()
        waiting += fresh
        seen.update(fresh)
    return False
