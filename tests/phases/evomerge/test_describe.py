"""A plan in words and as JSON names every tensor, where it comes from and what is done to it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from phases.evomerge.describe import plan_json, plan_lines
from phases.evomerge.plan import MergePlan, plan_merge
from phases.evomerge.recipe import Recipe


def plan(folder: Path) -> MergePlan:
    for name in ("a", "b"):
        (folder / name).mkdir()
        tensors = {f"h.{n}.w": torch.zeros(2, 3) for n in range(2)} | {"wte.weight": torch.zeros(4, 3)}
        save_file(tensors, folder / name / "model.safetensors")
    spans = [("a", [1, 2]), ("b", [0, 1])]
    sources = [{"model": str(folder / name), "layer_range": span} for name, span in spans]
    recipe = {"merge_method": "slerp", "base_model": str(folder / "a"), "slices": [{"sources": sources}]}
    return plan_merge(Recipe.parse(recipe | {"parameters": {"t": [0.25, 0.125]}, "out_dtype": "float16"}))


def test_lines(tmp_path: Path) -> None:
    lines = list(plan_lines(plan(tmp_path)))
    assert lines == [
        f"model {tmp_path}/a (base): 3 tensors, 2 layers, tied",
        f"model {tmp_path}/b: 3 tensors, 2 layers, tied",
        "result: 2 tensors, 18 parameters, 0.0 MB, no tokenizer",
        "wte.weight  4x3 float16  slerp t=0.25: b onto a",
        "h.0.w       2x3 float16  slerp t=0.125: b onto a:h.1.w",
    ]


def test_json(tmp_path: Path) -> None:
    found = json.loads(json.dumps(plan_json(plan(tmp_path))))
    assert (found["parameters"], found["bytes"]) == (18, 36)
    assert found["tensors"][1] == {
        "name": "h.0.w",
        "shape": [2, 3],
        "dtype": "float16",
        "method": "slerp",
        "inputs": [{"model": f"{tmp_path}/b", "name": "h.0.w"}],
        "base": {"model": f"{tmp_path}/a", "name": "h.1.w"},
        "parameters": {"t": 0.125},
    }
