"""What is wrong with what a person gives is said by field and fix, before work starts, and nothing is left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from phases import modeldir, storage
from phases.baking.instruct import dialogue_tokenizer
from phases.baking.lessons import LESSONS
from phases.cognate.loading import model_config
from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.errors import ForgeError
from serve.baking_commands import bake, chat, optimize

LONG = "amber " * 100_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound model and one with a weight that is no number."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), dialogue_tokenizer(LESSONS, 400)
    torch.manual_seed(0)
    config = TitanConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=16, n_layers=1, n_heads=2, hidden=16, tied=True,
        segment_len=128, max_ponder_steps=1, train_ponder_steps=1, memory=MemoryConfig(hidden=16),
    )  # fmt: skip
    modeldir.save_model(
        str(folder / "sound"),
        tensors=TinyTitan(config).state_dict(),
        config=model_config(config),
        tokenizer=tokenizer.to_str(),
        lineage=modeldir.Lineage(phase="cognate", seed=0),
    )
    _break(shutil.copytree(folder / "sound", folder / "broken"))
    return folder


def _break(model: Path) -> None:
    """Make a weight no number; such a model is not written by `save_model`, so its hash is put in by hand."""
    tensors = {name: tensor.clone() for name, tensor in modeldir.load_tensors(str(model)).items()}
    tensors["norm.weight"][0] = float("nan")
    save_file(tensors, model / modeldir.WEIGHTS)
    lineage = json.loads((model / modeldir.LINEAGE).read_text())
    lineage["files"][modeldir.WEIGHTS] = storage.sha256(str(model / modeldir.WEIGHTS))
    (model / modeldir.LINEAGE).write_text(json.dumps(lineage))


def _lesson(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    spec = {"name": name, "description": "digs", "parameters": parameters}
    return {"spec": spec, "request": "dig {q}", "arguments": {"q": "{q}"}, "values": {"q": ["a", "b"]}}


SOUND = {"type": "object", "properties": {"q": {"type": "string"}}}
FILES: dict[str, str] = {
    "persona.yaml": "helpfulness: 1.2\n",
    "odd.yaml": "kindness: 1\n",
    "schema.json": json.dumps([_lesson("dig", {"type": "objekt", "properties": {"q": {"type": "string"}}})]),
    "nested.json": json.dumps([_lesson("dig", {"type": "object", "properties": {"q": {"type": "text"}}})]),
    "many.json": json.dumps([_lesson(f"dig_{n}_{'x' * 40}", SOUND) for n in range(2500)]),  # 100,000 tokens and more
}


@pytest.mark.parametrize(
    ("work", "field", "fix"),
    [
        (lambda at: bake(str(at / "broken"), Path("out")), "norm.weight", "start from a model that is sound"),
        (lambda at: optimize(str(at / "broken"), Path("out")), "norm.weight", "start from a model that is sound"),
        (lambda at: chat(str(at / "broken"), say="hello"), "norm.weight", "start from a model that is sound"),
        (lambda at: bake(str(at / "sound"), Path("out"), tools=" "), "tools = ' '", "name some of rag_query"),
        (lambda at: bake(str(at / "sound"), Path("out"), tools="many.json"), "prompt = ", "use at most 208"),
        (lambda at: chat(str(at / "sound"), say=""), "--say = ''", "say something"),
        (lambda at: chat(str(at / "sound"), say="hello", system=" "), "--system = ' '", "or leave it out"),
        (lambda at: chat(str(at / "sound"), say=LONG), "--say = ", "use at most 208"),
        (lambda at: chat(str(at / "sound"), say="hello", system=LONG), "--system = ", "use at most 208"),
        (
            lambda at: bake(str(at / "sound"), Path("out"), tools="schema.json"),
            "parameters.type",
            "write a JSON Schema",
        ),
        (lambda at: bake(str(at / "sound"), Path("out"), tools="nested.json"), "properties.q.type", "a JSON Schema"),
        (
            lambda at: bake(str(at / "sound"), Path("out"), persona=Path("persona.yaml")),
            "persona.helpfulness",
            "0 to 1",
        ),
        (lambda at: bake(str(at / "sound"), Path("out"), persona=Path("odd.yaml")), "persona.kindness", "known fields"),
        (lambda at: optimize("unknown.onnx", Path("out")), "Frobnicate", "use operators that ONNX Runtime"),
        (lambda at: optimize(str(at / "sound"), Path("out"), size=["T=200"]), "--size T", "segment_len = 128"),
    ],
)
def test_it_is_named_with_the_fix_and_nothing_is_left(
    work: Callable[[Path], None],
    field: str,
    fix: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    _write_unknown(tmp_path / "unknown.onnx")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ForgeError) as raised:
        work(models)
    assert field in str(raised.value)
    assert fix in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def _write_unknown(path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
