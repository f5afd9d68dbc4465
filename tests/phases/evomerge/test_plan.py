"""Plans: what each tensor of the result is made of, and every mistake named with file and key before work starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from phases.errors import ArtifactError, ConfigError
from phases.evomerge.checkpoint import SINGLE
from phases.evomerge.errors import MergeError
from phases.evomerge.plan import COPY, MergePlan, TensorRef, plan_merge
from phases.evomerge.recipe import Recipe

MakeModel = Callable[..., str]
WEIGHT = {"parameters": {"weight": 1.0}}


@pytest.fixture
def make(tmp_path: Path) -> MakeModel:
    """Write a small model with the names of TinyTitan: two tensors a layer, tied, and a tokenizer."""

    def write(
        name: str, *, layers: int = 3, vocabulary: int = 6, tokens: dict[str, int] | None = None, **edits: Any
    ) -> str:
        tensors: dict[str, torch.Tensor | None] = {
            "embedding.weight": torch.zeros(vocabulary, 4),
            "norm.weight": torch.zeros(4),
            "memory.mlp.0.weight": torch.zeros(2, 4),
        }
        for n in range(layers):
            tensors |= {f"blocks.{n}.qkv.weight": torch.zeros(12, 4), f"blocks.{n}.norm.weight": torch.zeros(4)}
        config = edits.pop("config", {"model_type": "tinytitan", "n_layers": layers, "tied": True})
        tensors |= {key.replace("__", "."): value for key, value in edits.items()}
        (tmp_path / name).mkdir()
        save_file({key: value for key, value in tensors.items() if value is not None}, tmp_path / name / SINGLE)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        vocab = tokens or {"a": 0, "b": 1}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
        return str(tmp_path / name)

    return write


def plan(method: str, *models: str, **more: Any) -> MergePlan:
    return plan_merge(Recipe.parse({"merge_method": method, "models": [{"model": m} for m in models]} | more, "r.yml"))


def sources(model: str, start: int, end: int) -> dict[str, Any]:
    return {"model": model, "layer_range": [start, end]}


def test_gradients_run_over_the_layers_and_ends_take_the_first_value(make: MakeModel) -> None:
    found = plan("slerp", make("a"), base_model=make("b"), parameters={"t": [0.25, 0.5, 1]})
    values = {step.name: step.parameters["t"] for step in found.steps}
    assert values.pop("embedding.weight") == values.pop("norm.weight") == values.pop("memory.mlp.0.weight") == 0.25
    assert [values[f"blocks.{n}.qkv.weight"] for n in range(3)] == [0.25, 0.5, 1]


def test_a_slice_of_one_layer_is_at_the_end_of_the_gradient(make: MakeModel) -> None:
    a, b = make("a"), make("b")
    slices = [{"sources": [sources(a, n, n + 1), sources(b, 0, 1)]} for n in range(2)]
    found = plan_merge(
        Recipe.parse({"merge_method": "slerp", "base_model": a, "slices": slices, "parameters": {"t": [0, 1]}})
    )
    assert {s.parameters["t"] for s in found.steps if s.name.startswith("blocks.")} == {1}


def test_slices_renumber_layers_and_keep_the_ends_of_first_and_last(make: MakeModel) -> None:
    a, b = make("a"), make("b", layers=5)
    slices = [{"sources": [sources(b, 3, 5)]}, {"sources": [sources(a, 0, 2)]}, {"sources": [sources(a, 1, 2)]}]
    found = plan_merge(Recipe.parse({"merge_method": "passthrough", "slices": slices}))
    inputs = {step.name: step.inputs for step in found.steps}
    assert inputs["embedding.weight"] == (TensorRef(b, "embedding.weight"),)
    assert inputs["norm.weight"] == (TensorRef(a, "norm.weight"),)
    layers = [inputs[f"blocks.{n}.qkv.weight"][0] for n in range(5)]
    assert layers == [(m, f"blocks.{n}.qkv.weight") for m, n in ((b, 3), (b, 4), (a, 0), (a, 1), (a, 1))]
    assert found.config["n_layers"] == 5
    assert len(found.steps) == 3 + 2 * 5


def test_base_is_apart_where_the_method_has_one_and_alike_where_not(make: MakeModel) -> None:
    a, b = make("a"), make("b")
    apart = plan("ties", a, b, base_model=a, parameters={"weight": 1, "density": 0.5}).steps[0]
    assert (apart.base, apart.inputs) == (TensorRef(a, apart.name), (TensorRef(b, apart.name),))
    alike = plan("linear", a, b, base_model=a, **WEIGHT).steps[0]
    assert (alike.base, [ref.model for ref in alike.inputs]) == (None, [a, b])
    assert alike.parameters["weight"] == (1.0, 1.0)


def test_dtypes_are_promoted_or_as_asked(make: MakeModel) -> None:
    half = {"norm__weight": torch.zeros(4, dtype=torch.bfloat16), "steps": torch.tensor(3)}
    a, b = make("a", **half), make("b", steps=torch.tensor(3))
    kinds = {step.name: (step.method, step.compute, step.dtype) for step in plan("linear", a, b, **WEIGHT).steps}
    assert kinds["norm.weight"] == ("linear", torch.float32, torch.float32)
    assert kinds["steps"] == (COPY, torch.int64, torch.int64)
    asked = {step.name: step for step in plan("linear", a, b, **WEIGHT, dtype="float16", out_dtype="bfloat16").steps}
    assert (asked["norm.weight"].compute, asked["norm.weight"].dtype) == (torch.float16, torch.bfloat16)
    assert asked["steps"].dtype == torch.int64


def test_config_is_the_base_models(make: MakeModel) -> None:
    config = {"n_layers": 3, "tied": True, "dtype": "float32", "layer_types": ["x", "y", "z"], "halt": 0.9}
    a, b = make("a", config=config), make("b", config=config | {"halt": 0.5})
    assert plan("slerp", b, base_model=a, parameters={"t": 0}).config == config
    assert plan("linear", b, a, **WEIGHT, dtype="bfloat16").config == config | {"halt": 0.5, "dtype": "bfloat16"}
    slices = [{"sources": [sources(a, 2, 3)]}, {"sources": [sources(b, 0, 1)]}]
    deep = plan_merge(Recipe.parse({"merge_method": "passthrough", "slices": slices})).config
    assert (deep["n_layers"], deep["layer_types"]) == (2, ["z", "x"])


def test_a_head_in_one_model_unties_the_result(make: MakeModel) -> None:
    a = make("a")
    b = make("b", head__weight=torch.zeros(6, 4), config={"n_layers": 3, "tied": False})
    found = plan("linear", a, b, **WEIGHT)
    head = next(step for step in found.steps if step.name == "head.weight")
    assert head.inputs == (TensorRef(a, "embedding.weight"), TensorRef(b, "head.weight"))
    assert found.config["tied"] is False
    assert plan("linear", a, **WEIGHT).config["tied"] is True


def test_derived_buffers_are_left_out(make: MakeModel) -> None:
    a = make("a", **{"blocks__0__rotary_emb__inv_freq": torch.ones(2)})
    assert len(plan("linear", a, make("b"), **WEIGHT).steps) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "tyes"}, "r.yml: merge_method = 'tyes': unknown method; did you mean ties?"),
        ({"parameters": {"wieght": 1}}, "r.yml: parameters.wieght: unknown parameter of linear; did you mean weight?"),
        ({"parameters": {}}, "r.yml: parameters.weight: required by linear and missing for embedding.weight of"),
        ({"base_model": "B", "models": [{"model": "A", **WEIGHT}], "parameters": {}}, "leave base_model out"),
        (
            {"models": [{"model": "A", "parameters": {"normalize": True}}]},
            "models[0].parameters.normalize: the same for",
        ),
        ({"models": [{"model": "A"}, {"model": "A"}]}, "named twice as a source"),
        ({"models": [{"model": "nowhere"}]}, "nowhere: no such folder"),
        ({"merge_method": "slerp", "parameters": {"t": 1}}, "base_model = None: slerp needs a base"),
        ({"merge_method": "ties", "base_model": "A", "parameters": {"density": 2, "weight": 1}}, "out of range"),
        (
            {"merge_method": "slerp", "base_model": "A", "models": [{"model": "A"}], "parameters": {"t": 1}},
            "slerp merges 1",
        ),
        ({"merge_method": "passthrough", "parameters": {}}, "passthrough merges 1 models, not 2"),
        ({"tokenizer_source": "base"}, "tokenizer_source = 'base': there is no base_model"),
        ({"tokenizer_source": "C"}, "no tokenizer in"),
    ],
)
def test_mistakes_in_recipes_are_named(make: MakeModel, change: dict[str, Any], message: str) -> None:
    paths = {name: make(name) for name in "ABC"}
    (Path(paths["C"]) / "tokenizer.json").unlink()
    recipe = {"merge_method": "linear", "models": [{"model": "A"}, {"model": "B"}], **WEIGHT} | change
    text = json.dumps(recipe)
    for name, path in paths.items():
        text = text.replace(f'"{name}"', json.dumps(path))
    with pytest.raises((ConfigError, ArtifactError)) as caught:
        plan_merge(Recipe.parse(json.loads(text), "r.yml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([(0, 2), (0, 3)], "numbers of layers differ"),
        ([(0, 4), (0, 4)], "has layers 0 to 3"),
        ([(2, 1), (2, 1)], "has layers 0 to 3"),
        ([(1, 1), (1, 1)], "give a range within them"),
    ],
)
def test_mistakes_in_slices_are_named(make: MakeModel, layers: list[tuple[int, int]], message: str) -> None:
    models = [make("a"), make("b")]
    part = [sources(model, *span) for model, span in zip(models, layers, strict=True)]
    with pytest.raises(ConfigError, match=r"r.yml: slices\[0\]") as caught:
        plan_merge(Recipe.parse({"merge_method": "linear", "slices": [{"sources": part}], **WEIGHT}, "r.yml"))
    assert message in str(caught.value)


def test_a_slice_without_its_base_is_named(make: MakeModel) -> None:
    a, b = make("a"), make("b")
    recipe = {"merge_method": "slerp", "base_model": b, "slices": [{"sources": [sources(a, 0, 1)]}]}
    with pytest.raises(ConfigError, match=r"base_model .*/b is not among the sources"):
        plan_merge(Recipe.parse(recipe | {"parameters": {"t": 0}}))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"norm__weight": None}, "/b: no tensor 'norm.weight', which"),
        ({"extra": torch.zeros(1)}, "/a: no tensor 'extra', which"),
        ({"norm__weight": torch.zeros(5)}, "/b: norm.weight has shape [5], but [4] in"),
        ({"blocks__1__qkv__weight": torch.zeros(12, 5)}, "/b: blocks.1.qkv.weight has shape [12, 5], but [12, 4] in"),
        ({"vocabulary": 7}, "/b: embedding.weight has shape [7, 4], but [6, 4] in"),
        ({"vocabulary": 7}, "their vocabularies differ, resize one model's first"),
        ({"norm__weight": torch.zeros(4, dtype=torch.int64)}, "/b: norm.weight is torch.int64, but torch.float32 in"),
        ({"layers": 2}, "numbers of layers differ"),
        ({"config": {"model_type": "llama"}}, "/b: model_type 'llama', but"),
        (
            {"config": {"model_type": "tinytitan", "tied": False}, "head__weight": torch.zeros(7, 4)},
            "vocabularies differ",
        ),
        ({"tokens": {"a": 1, "b": 0}}, "/b/tokenizer.json: token 'a' has id 1, not 0, unlike in"),
        ({"tokens": {"a": 0, "c": 1}}, "/b/tokenizer.json: id 1 is 'c', not 'b', unlike in"),
    ],
)
def test_models_that_do_not_fit_are_named(make: MakeModel, edits: dict[str, Any], message: str) -> None:
    with pytest.raises((ArtifactError, MergeError, ConfigError)) as caught:
        plan("linear", make("a"), make("b", **edits), **WEIGHT)
    assert message in str(caught.value)


def test_a_head_that_should_be_there_is_named(make: MakeModel) -> None:
    b = make("b", config={"model_type": "tinytitan", "tied": False})
    c = make("c", head__weight=torch.zeros(6, 4), config={"model_type": "tinytitan", "tied": False})
    with pytest.raises(ArtifactError, match=r"/b: no tensor 'head.weight', which .*/c has"):
        plan("linear", b, c, **WEIGHT)


def test_tokenizers(make: MakeModel) -> None:
    a, more = make("a"), make("b", tokens={"a": 0, "b": 1, "c": 2})

    def taken(**recipe: Any) -> list[str]:
        return [str(file) for file in plan("linear", a, more, **WEIGHT, **recipe).companions]

    assert taken() == [f"{a}/tokenizer.json"]
    assert taken(tokenizer_source=more) == taken(tokenizer={"source": more}) == [f"{more}/tokenizer.json"]
    assert taken(base_model=more, tokenizer_source="base") == [f"{more}/tokenizer.json"]
    with pytest.raises(MergeError, match="'union' does not extend vocabularies"):
        taken(tokenizer_source="union")


def test_a_depth_that_the_config_does_not_tell_is_named(make: MakeModel) -> None:
    a = make("a", config={"model_type": "x"})
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [sources(a, 0, 2)]}]}
    with pytest.raises(ArtifactError, match=r"config.json: no layer count of 3 in num_hidden_layers"):
        plan_merge(Recipe.parse(recipe))


def test_two_stacks_cannot_be_sliced(make: MakeModel) -> None:
    second = {f"encoder__{n}__{part}__weight": torch.zeros(4) for n in range(3) for part in ("q", "norm")}
    a = make("a", **second)
    assert len(plan("linear", a, **WEIGHT).steps) == 15
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [sources(a, 0, 2)]}]}
    with pytest.raises(ConfigError, match="has 2 stacks of layers"):
        plan_merge(Recipe.parse(recipe))
