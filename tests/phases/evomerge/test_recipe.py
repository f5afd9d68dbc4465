"""Recipes: the semantics of mergekit's configuration, and typos that are named with file and key."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.errors import ConfigError
from phases.evomerge.recipe import Recipe, Scope, resolve

LINEAR: dict[str, Any] = {
    "merge_method": "linear",
    "models": [{"model": "a", "parameters": {"weight": 0.25}}, {"model": "b"}],
    "parameters": {"weight": [0, 1]},
}


def value_of(parameters: dict[str, Any], tensor: str, position: float, kind: str = "float") -> Any:
    recipe = Recipe.parse(LINEAR | {"parameters": parameters})
    return resolve(recipe, recipe.shared, "weight", kind, tensor=tensor, position=position)


def test_models_become_one_slice_with_the_base_last(tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(yaml.safe_dump(LINEAR | {"base_model": "c", "dtype": "bfloat16"}))
    recipe = Recipe.load(tmp_path / "r.yml")
    assert [source.model for source in recipe.slices[0].sources] == ["a", "b", "c"]
    assert recipe.models == ("c", "a", "b")
    assert (recipe.dtype, recipe.out_dtype, recipe.sliced) == (torch.bfloat16, None, False)
    again = Recipe.parse(LINEAR | {"base_model": "a"})
    assert [source.model for source in again.slices[0].sources] == ["a", "b"]


def test_a_single_module_is_its_content() -> None:
    inner = {"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]}], "parameters": {"scale": 2}}
    recipe = Recipe.parse({"merge_method": "passthrough", "modules": {"default": inner}})
    assert recipe.sliced
    assert recipe.slices[0].sources[0].layers == (0, 2)
    assert recipe.shared[0].where == "modules.default.parameters"


def test_precedence_is_source_slice_module_global() -> None:
    def value(*given: bool) -> Any:
        source, part, module, everything = ({"weight": n} if on else {} for n, on in enumerate(given))
        sources = [{"model": "a", "layer_range": [0, 2], "parameters": source}]
        modules = {"default": {"slices": [{"sources": sources, "parameters": part}], "parameters": module}}
        recipe = Recipe.parse({"merge_method": "linear", "modules": modules, "parameters": everything})
        scopes = recipe.scopes(recipe.slices[0], recipe.slices[0].sources[0])
        return resolve(recipe, scopes, "weight", "float", tensor="x", position=0)

    assert value(True, True, True, True) == 0
    assert value(False, True, True, True) == 1
    assert value(False, False, True, True) == 2
    assert value(False, False, False, True) == 3
    assert value(False, False, False, False) is None


def test_rules_take_the_first_hit_and_fall_through_without_one() -> None:
    rules = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "attn", "value": 7}, {"value": 3}]
    assert value_of({"weight": rules}, "layers.1.self_attn.q", 0.25) == 0.25
    assert value_of({"weight": rules}, "layers.1.cross_attn.q", 0.25) == 7
    assert value_of({"weight": rules}, "mlp", 1) == 3
    assert value_of({"weight": [{"filter": "*", "value": 5}]}, "mlp", 0) == 5
    assert value_of({"weight": {"filter": "attn", "value": 5}}, "mlp", 0) is None


def test_booleans_are_picked_and_scientific_text_is_a_number() -> None:
    picked = [value_of({"weight": [True, False, False]}, "x", t, "bool") for t in (0, 0.49, 0.5, 1)]
    assert picked == [True, True, False, False]
    assert value_of(yaml.safe_load("weight: 1e-3"), "x", 0) == 1e-3
    assert value_of({"weight": 3.0}, "x", 0, "int") == 3


points = st.lists(st.floats(-3, 3) | st.integers(-3, 3), min_size=1, max_size=5)
values = points | st.floats(-3, 3)
rule = st.fixed_dictionaries({"filter": st.sampled_from(["attn", "mlp", "*", "q_proj"]), "value": values})


@settings(max_examples=200, deadline=None)
@given(
    setting=values | st.lists(rule, min_size=1, max_size=3),
    position=st.floats(0, 1),
    name=st.sampled_from(["m.attn.q", "mlp.q_proj", "n"]),
)
def test_equals_mergekit(setting: Any, position: float, name: str) -> None:
    config = pytest.importorskip("mergekit.config")
    theirs = config.MergeConfiguration.model_validate(LINEAR | {"parameters": {"weight": setting}})
    expected = config.evaluate_setting(name, theirs.parameters["weight"], position, validate=float)
    assert value_of({"weight": setting}, name, position) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_metod": "x"}, "r.yml: merge_metod = 'x': unknown key; did you mean merge_method?"),
        ({"models": [{"modl": "a"}]}, "r.yml: models[0].modl = 'a': unknown key; did you mean model?"),
        ({"models": [{"model": "a", "parameters": {"weight": []}}]}, "models[0].parameters.weight = []"),
        ({"parameters": {"weight": [{"filtr": "x", "value": 1}]}}, "unknown key 'filtr'"),
        ({"parameters": {"weight": [{"filter": "x"}]}}, "a rule needs a `value`"),
        ({"parameters": {"weight": [1, {"value": 1}]}}, "neither a value, nor a list"),
        ({"parameters": {"weight": None}}, "parameters.weight = None"),
        ({"dtype": "int8"}, "r.yml: dtype = 'int8': not a dtype to merge in; choose one of float64, float32"),
        ({"models": []}, "r.yml: models = []"),
        ({"models": None}, "no models given; name exactly one of models, slices, modules"),
        ({"slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]}, "models and slices given"),
        ({"slices": [{"sources": [{"model": "a"}]}]}, "slices[0].sources[0].layer_range"),
        ({"chat_template": "auto"}, "chat_template = 'auto': not supported; put the template"),
        ({"tokenizer": {"tokens": {}}}, "tokenizer.tokens = {}: not supported"),
        ({"tokenizer": {"source": "base"}, "tokenizer_source": "base"}, "both tokenizer and tokenizer_source"),
        ({"models": None, "modules": {"a": {}, "b": {}}}, "several modules are not supported"),
        ({"models": None, "modules": {"a": {}}}, "modules.a: name exactly one of models and slices"),
        ({"models": [{"model": {"path": "a"}}]}, "models[0].model"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "r.yml"
    file.write_text(yaml.safe_dump({k: v for k, v in (LINEAR | change).items() if v is not None or k != "models"}))
    with pytest.raises(ConfigError) as caught:
        Recipe.load(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- 1", "content = [1]"), ("", "content")])
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yml").write_text(text)
    with pytest.raises(ConfigError, match=r"r\.yml") as caught:
        Recipe.load(tmp_path / "r.yml")
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Recipe.load(tmp_path / "other.yml")


def test_values_of_the_wrong_kind_are_named() -> None:
    recipe = Recipe.parse(LINEAR | {"parameters": {"weight": ["much", 1]}})
    with pytest.raises(ConfigError, match=r"recipe: parameters.weight = \['much', 1\].*give a value of type float"):
        resolve(recipe, [Scope("x", {}), *recipe.shared], "weight", "float", tensor="x", position=0)
