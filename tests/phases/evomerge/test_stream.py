"""Merging from disk to disk: the same files as mergekit's, whole or not at all, and accepted as a model directory."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from phases import modeldir
from phases.errors import ArtifactError, BusyError, ConfigError
from phases.evomerge.checkpoint import INDEX, SINGLE, open_checkpoint
from phases.evomerge.errors import MergeError
from phases.evomerge.plan import plan_merge
from phases.evomerge.recipe import Recipe
from phases.evomerge.stream import execute_plan

ROOT = Path(__file__).parents[3]
LAYERS, WIDTH, HIDDEN, VOCABULARY = 4, 16, 24, 40
MakeModel = Callable[..., str]


def llama(seed: int, *, tied: bool, dtype: torch.dtype, layers: int = LAYERS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inner = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (WIDTH // 2, WIDTH),
        "self_attn.v_proj": (WIDTH // 2, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (HIDDEN, WIDTH),
        "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    shapes |= {f"model.layers.{n}.{k}.weight": shape for n in range(layers) for k, shape in inner.items()}
    shapes |= {} if tied else {"lm_head.weight": (VOCABULARY, WIDTH)}
    return {name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for name, shape in shapes.items()}


def llama_config(*, tied: bool, dtype: torch.dtype, layers: int = LAYERS) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "tie_word_embeddings": tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


@pytest.fixture
def make(tmp_path: Path) -> MakeModel:
    """Write random LLaMA checkpoints by name; the same name is the same model, close to one that all share."""

    def write(
        name: str, *, tied: bool = False, dtype: torch.dtype = torch.float32, shards: int = 1, **edits: Any
    ) -> str:
        folder = tmp_path / name
        folder.mkdir()
        common, own = (
            llama(0, tied=tied, dtype=torch.float32),
            llama(sum(map(ord, name)), tied=tied, dtype=torch.float32),
        )
        tensors = {key: (common[key] + 0.3 * own[key]).to(dtype) for key in common} | edits
        if shards == 1:
            save_file(tensors, folder / SINGLE)
        else:
            where = {key: f"model-{n % shards + 1:05}-of-{shards:05}.safetensors" for n, key in enumerate(tensors)}
            for file in set(where.values()):
                save_file({key: tensors[key] for key in tensors if where[key] == file}, folder / file)
            (folder / INDEX).write_text(json.dumps({"weight_map": where}))
        (folder / "config.json").write_text(json.dumps(llama_config(tied=tied, dtype=dtype)))
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}))
        return str(folder)

    return write


def merged(recipe: dict[str, Any], out: Path, **options: Any) -> dict[str, torch.Tensor]:
    execute_plan(plan_merge(Recipe.parse(recipe)), out, **options)
    checkpoint = open_checkpoint(out)
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def by_mergekit(recipe: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    theirs = pytest.importorskip("mergekit.merge")
    config = pytest.importorskip("mergekit.config")
    options = theirs.MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    theirs.run_merge(config.MergeConfiguration.model_validate(recipe), str(out), options)
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], relative: float = 0) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype
        assert ours[name].shape == expected.shape
        assert (ours[name].double() - expected.double()).norm() <= relative * expected.double().norm(), name


def models(*paths: str, **parameters: list[Any]) -> list[dict[str, Any]]:
    return [
        {"model": path, "parameters": {key: values[n] for key, values in parameters.items()}}
        for n, path in enumerate(paths)
    ]


def test_linear_with_gradients_equals_mergekit(make: MakeModel, tmp_path: Path) -> None:
    weights = [
        [0, 0.5, 1],
        [{"filter": "mlp", "value": [1, 0]}, {"filter": "q_proj", "value": 0.25}, {"value": 0.7}],
        0.2,
    ]
    recipe = {"merge_method": "linear", "models": models(make("a"), make("b", shards=3), make("c"), weight=weights)}
    assert_same(merged(recipe, tmp_path / "ours"), by_mergekit(recipe, tmp_path / "theirs"))


def test_slerp_with_filters_equals_mergekit(make: MakeModel, tmp_path: Path) -> None:
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0]},
        {"value": 0.5},
    ]
    a, b = make("a"), make("b")
    whole = {"sources": [{"model": a, "layer_range": [0, LAYERS]}, {"model": b, "layer_range": [0, LAYERS]}]}
    recipe = {"merge_method": "slerp", "base_model": a, "slices": [whole], "parameters": {"t": t}}
    assert_same(merged(recipe, tmp_path / "ours"), by_mergekit(recipe, tmp_path / "theirs"), 3e-7)


def test_ties_equals_mergekit(make: MakeModel, tmp_path: Path) -> None:
    inputs = models(make("a"), make("b"), make("c"), weight=[0.5, 0.3, [0.1, 0.9]], density=[0.5, [0.9, 0.2], 0.7])
    recipe = {
        "merge_method": "ties",
        "base_model": make("base"),
        "models": inputs,
        "parameters": {"normalize": True, "lambda": 0.8, "int8_mask": True},
    }
    assert_same(merged(recipe, tmp_path / "ours"), by_mergekit(recipe, tmp_path / "theirs"), 1e-7)


@pytest.mark.parametrize(
    ("method", "count", "based", "parameters"),
    [
        ("nuslerp", 2, False, {"weight": [0.2, 0.9]}),
        ("nuslerp", 2, True, {"weight": 0.5, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("multislerp", 3, True, {"weight": 0.3}),
        ("karcher", 2, True, {}),
        ("task_arithmetic", 2, True, {"weight": [0.2, 0.9], "lambda": [0.5, 1]}),
        ("breadcrumbs", 3, True, {"weight": 0.3, "density": 0.7, "gamma": 0.05}),
        ("breadcrumbs_ties", 3, True, {"weight": 0.3, "density": 0.7}),
        ("model_stock", 3, True, {}),
        ("nearswap", 1, True, {"t": 0.01}),
        ("ram", 2, True, {}),
        ("ramplus_tl", 2, True, {}),
        ("arcee_fusion", 1, True, {}),
        ("sce", 3, True, {"select_topk": 0.6}),
    ],
)
def test_other_methods_equal_mergekit(
    make: MakeModel, tmp_path: Path, method: str, count: int, based: bool, parameters: dict[str, Any]
) -> None:
    inputs = [{"model": make(name)} for name in "abc"[:count]]
    recipe = {"merge_method": method, "models": inputs, "parameters": parameters}
    recipe |= {"base_model": make("base")} if based else {}
    assert_same(merged(recipe, tmp_path / "ours"), by_mergekit(recipe, tmp_path / "theirs"), 1e-6)


def test_passthrough_slices_equal_mergekit(make: MakeModel, tmp_path: Path) -> None:
    a, b = make("a"), make("b", shards=2)
    spans = [(a, [0, 3]), (b, [1, 4]), (a, [3, 4])]
    slices: list[dict[str, Any]] = [{"sources": [{"model": model, "layer_range": span}]} for model, span in spans]
    slices[1]["sources"][0]["parameters"] = {"scale": [{"filter": "down_proj", "value": 0.5}, {"value": 1.0}]}
    recipe = {"merge_method": "passthrough", "slices": slices}
    ours = merged(recipe, tmp_path / "ours")
    assert_same(ours, by_mergekit(recipe, tmp_path / "theirs"))
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["num_hidden_layers"] == 7
    assert torch.equal(ours["lm_head.weight"], open_checkpoint(a).read("lm_head.weight"))


@pytest.mark.parametrize("dtypes", [{}, {"dtype": "bfloat16"}, {"dtype": "float32", "out_dtype": "float16"}])
def test_mixed_dtypes_equal_mergekit(make: MakeModel, tmp_path: Path, dtypes: dict[str, str]) -> None:
    inputs = [make("a", dtype=torch.bfloat16), make("b", dtype=torch.float32), make("c", dtype=torch.float16)]
    recipe = {"merge_method": "linear", "models": models(*inputs, weight=[1, 2, 3])} | dtypes
    ours = merged(recipe, tmp_path / "ours")
    assert_same(ours, by_mergekit(recipe, tmp_path / "theirs"))
    expected = dtypes.get("out_dtype") or dtypes.get("dtype") or "float32"
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == expected


@pytest.mark.parametrize("tied", [(True, True), (False, True), (True, False)])
def test_tied_embeddings_equal_mergekit(make: MakeModel, tmp_path: Path, tied: tuple[bool, bool]) -> None:
    recipe = {
        "merge_method": "linear",
        "models": models(make("a", tied=tied[0]), make("b", tied=tied[1]), weight=[1, 3]),
    }
    ours = merged(recipe, tmp_path / "ours")
    assert_same(ours, by_mergekit(recipe, tmp_path / "theirs"))
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["tie_word_embeddings"] is all(tied)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "dare_ties", "dare_linear", "ties", "breadcrumbs", "slerp"]
)
def test_pieces_of_a_large_tensor_equal_the_whole(
    make: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, dtype: str
) -> None:
    recipe: dict[str, Any] = {"merge_method": method, "base_model": make("base"), "dtype": dtype}
    if method == "slerp":
        recipe |= {"models": [{"model": make("b", dtype=torch.bfloat16)}], "parameters": {"t": 0.3}}
    else:
        inputs = models(make("a"), make("b", dtype=torch.bfloat16), recipe["base_model"], weight=[0.7, 0.4, 1])
        recipe |= {"models": inputs, "parameters": {} if method == "linear" else {"lambda": 0.9}}
    if method in ("ties", "dare_ties", "dare_linear", "breadcrumbs"):
        recipe["parameters"] |= {"density": [0.3, 0.8], "normalize": True}
    whole = merged(recipe, tmp_path / "whole", seed=5)
    monkeypatch.setattr("phases.evomerge.pieces.PIECE", 100)
    assert_same(merged(recipe, tmp_path / "pieces", seed=5), whole)


def test_errors_in_pieces_name_the_tensor(make: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phases.evomerge.pieces.PIECE", 10)
    bad = make("a", **{"model.norm.weight": torch.full((WIDTH,), torch.nan)})
    inputs = models(bad, make("b"), weight=[1, -1])
    recipe = {"merge_method": "dare_linear", "base_model": make("base"), "models": inputs}
    with pytest.raises(MergeError, match=r"model.norm.weight: dare_linear: .* not finite"):
        merged(recipe, tmp_path / "out")
    with pytest.raises(MergeError, match=r"model.embed_tokens.weight: dare_linear: .* sum to 0"):
        merged(recipe | {"parameters": {"normalize": True}}, tmp_path / "out")


def test_masks_depend_on_seed_and_tensor_alone(make: MakeModel, tmp_path: Path) -> None:
    inputs = models(make("a"), make("b"), weight=[0.5, 0.5], density=[0.5, 0.5])
    recipe = {"merge_method": "dare_ties", "base_model": make("base"), "models": inputs}
    first = merged(recipe, tmp_path / "1", seed=7)
    assert_same(merged(recipe, tmp_path / "2", seed=7, shard_bytes=4000), first)
    other = merged(recipe, tmp_path / "3", seed=8)
    assert not torch.equal(other["lm_head.weight"], first["lm_head.weight"])


def test_result_is_a_model_directory(make: MakeModel, tmp_path: Path) -> None:
    a, base = make("a"), make("base")
    recipe = {"merge_method": "slerp", "base_model": base, "models": [{"model": a}], "parameters": {"t": 0.25}}
    steps: list[str] = []
    plan = plan_merge(Recipe.parse(recipe))
    ref = execute_plan(plan, tmp_path / "out", seed=3, on_step=lambda step: steps.append(step.name))
    assert steps == [step.name for step in plan.steps]
    assert modeldir.open_ref(str(tmp_path / "out"), ref.sha256) == ref
    lineage = modeldir.load_lineage(str(tmp_path / "out"))
    assert (lineage.phase, lineage.seed, lineage.config["recipe"]) == ("evomerge", 3, recipe)
    assert lineage.parents == {"base": open_checkpoint(base).digest(), "a": open_checkpoint(a).digest()}
    assert lineage.parameters == ref.parameters == sum(t.numel() for t in load_file(tmp_path / "out" / SINGLE).values())
    assert set(lineage.files) == {SINGLE, "config.json", "tokenizer.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base", "out"]


def test_shards_hold_the_same_tensors(make: MakeModel, tmp_path: Path) -> None:
    recipe = {"merge_method": "passthrough", "models": [{"model": make("a")}]}
    single = merged(recipe, tmp_path / "single")
    assert_same(merged(recipe, tmp_path / "shards", shard_bytes=6000), single)
    files = list((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 6000 for file in files)
    assert not modeldir.damaged_files(str(tmp_path / "shards"))


def test_equal_buffers_are_copied_and_others_refused(make: MakeModel, tmp_path: Path) -> None:
    buffer = {"model.ids": torch.arange(5)}
    a, b, c = make("a", **buffer), make("b", **buffer), make("c", **{"model.ids": torch.ones(5, dtype=torch.int64)})
    ok = {"merge_method": "linear", "dtype": "bfloat16", "models": models(a, b, weight=[1, 1])}
    assert torch.equal(merged(ok, tmp_path / "out")["model.ids"], buffer["model.ids"])
    with pytest.raises(MergeError, match=r"/c: buffer 'model.ids' .* differs"):
        merged(ok | {"models": models(a, c, weight=[1, 1])}, tmp_path / "bad")
    assert not list(tmp_path.glob("*bad*"))


def test_errors_leave_nothing(make: MakeModel, tmp_path: Path) -> None:
    a, b = make("a"), make("b", **{"model.norm.weight": torch.full((WIDTH,), torch.nan)})
    recipe = {"merge_method": "linear", "models": models(a, b, weight=[1, 1])}
    with pytest.raises(MergeError, match=r"model.norm.weight"):
        merged(recipe, tmp_path / "out")

    def interrupt(step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(recipe, tmp_path / "out", on_step=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


KILLED = """
import os, signal, sys
from phases.evomerge.plan import plan_merge
from phases.evomerge.recipe import Recipe
from phases.evomerge.stream import execute_plan
seen = []
def on_step(step):
    seen.append(step)
    if len(seen) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
execute_plan(plan_merge(Recipe.load(sys.argv[1])), sys.argv[2], on_step=on_step)
"""


def test_a_killed_merge_leaves_no_model_and_can_be_repeated(make: MakeModel, tmp_path: Path) -> None:
    recipe = {"merge_method": "linear", "models": models(make("a"), make("b"), weight=[1, 1])}
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "r.yml"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / ".tmp-out").iterdir())
    merged(recipe, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out", "r.yml"]


def test_two_merges_into_one_folder(make: MakeModel, tmp_path: Path) -> None:
    recipe = {"merge_method": "linear", "models": models(make("a"), weight=[1])}
    busy: list[str] = []

    def second(step: object) -> None:
        if not busy:
            with pytest.raises(BusyError, match="another process is merging into it"):
                merged(recipe, tmp_path / "out")
            busy.append("seen")

    first = merged(recipe, tmp_path / "out", on_step=second)
    assert busy
    assert first
    with pytest.raises(ConfigError, match="exists already"):
        merged(recipe, tmp_path / "out")


def test_an_altered_parent_is_found(make: MakeModel, tmp_path: Path) -> None:
    recipe = {"merge_method": "passthrough", "models": [{"model": make("a")}]}
    merged(recipe, tmp_path / "once")
    weights = bytearray((tmp_path / "once" / SINGLE).read_bytes())
    weights[-3] ^= 1
    (tmp_path / "once" / SINGLE).write_bytes(weights)
    again = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "once")}]}
    with pytest.raises(ArtifactError, match=r"once: weights are .* lineage.json says"):
        merged(again, tmp_path / "twice")


def test_transformers_loads_a_deeper_model(make: MakeModel, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    slices = [
        {"sources": [{"model": model, "layer_range": [0, 3]}]} for model in (make("a", tied=True), make("b", tied=True))
    ]
    merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out", shard_bytes=9000)
    model, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model(torch.arange(6)[None]).logits.shape == (1, 6, VOCABULARY)
