"""The command line: what it prints without work, and the errors that come before any work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phases import modeldir
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.corpus.tokenizer import train_tokenizer
from phases.quietstar.config import ThoughtConfig
from phases.quietstar.loading import save_thinker
from phases.quietstar.thinker import Thinker

ROOT = Path(__file__).parent.parent


def forge(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "forge.py"), *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


COMMANDS = ["run", "resume", "status", "report", "verify", "phase", "merge", "generate", "serve", "bench"]
COMMANDS += ["quantize", "audit", "compliance", "bake", "chat", "optimize"]


def test_help_names_every_command() -> None:
    shown = forge("--help").stdout
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "--preset", "nanoo"), "did you mean nano?"),
        (("run", "--preset", "smoke", "--set", "cognate.trainign.steps=5"), "did you mean training?"),
        (("run", "--preset", "smoke", "--set", "cognate.model.d_model=65"), "d_model"),
        (("run", "--preset", "smoke", "--set", "cognate.training.steps=many"), "cognate.training.steps = 'many'"),
        (("run", "--preset", "smoke", "--corpus", "/nowhere"), "/nowhere"),
        (("run", "--preset", "smoke", "--phases", "evomergee"), "unknown phases"),
        (("run", "--preset", "smoke", "--set", "seed"), "not of the form a.b=c"),
        (("run", "--preset", "smoke", "--set", "quietstar.thought.length=31"), "use at most 29"),
        (("phase", "cognate", "--model", "x"), "leave the model out"),
        (("phase", "quietstar"), "name a model to start from"),
        (("phase", "bitnet", "--model", "/nowhere"), "neither a model directory nor a run"),
        (("verify", "/nowhere"), "/nowhere"),
        (("generate", "/nowhere", "--prompt", "x"), "neither a model directory nor a run"),
        (("merge", "/nowhere.yml", "out"), "recipe = '/nowhere.yml': cannot be read"),
        (("bench", "nothing"), "choose one of"),
        (("quantize", "/nowhere", "out"), "/nowhere"),
        (("quantize", "/nowhere", "out", "--format", "onyx"), "choose one of onnx, gguf, torch, archive"),
        (("audit", "/nowhere"), "/nowhere"),
        (("bake", "/nowhere", "out"), "/nowhere"),
        (("bake", "/nowhere", "."), "exists already"),
        (("bake", "/nowhere", "out", "--strength", "3"), "--strength = 3"),
        (("bake", "/nowhere", "out", "--persona", "/nowhere.yaml"), "persona = '/nowhere.yaml': cannot be read"),
        (("chat", "/nowhere", "--say", " "), "is empty"),
        (("optimize", "/nowhere.onnx", "out"), "/nowhere.onnx: no such file"),
        (("optimize", "/nowhere.onnx", "out", "--target", "beauty"), "choose latency, size or memory"),
        (("optimize", "/nowhere.onnx", "out", "--size", "batch"), "AXIS=N"),
        (("compliance", "pot10", "/nowhere"), "/nowhere"),
    ],
)
def test_errors_name_the_thing_and_leave_nothing(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    outcome = forge(*arguments, cwd=tmp_path)
    assert outcome.returncode == 1
    assert expected in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_merge_writes_a_model_directory(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        save_file({"blocks.0.w": torch.full((2, 2), value)}, tmp_path / name / "model.safetensors")
    models = [{"model": name, "parameters": {"weight": 1}} for name in ("a", "b")]
    (tmp_path / "recipe.yml").write_text(json.dumps({"merge_method": "linear", "models": models}))
    outcome = forge("merge", "recipe.yml", "out", "--json", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["sha256"] == modeldir.open_ref(str(tmp_path / "out")).sha256
    assert torch.equal(modeldir.load_tensors(str(tmp_path / "out"))["blocks.0.w"], torch.full((2, 2), 2.0))


def test_generate_shows_thoughts_where_they_are_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    changes = {"vocab_size": 272, "d_model": 16, "n_layers": 1, "n_heads": 2, "hidden": 16, "segment_len": 16}
    thinker = Thinker(TinyTitan(PRESETS["nano"].model_copy(update=changes)), ThoughtConfig(length=3, lookahead=2))
    tokenizer = train_tokenizer(["def f(x): return x"], 272).to_str()
    lineage = modeldir.Lineage(phase="quietstar", seed=0)
    uri = str(tmp_path / "model")
    save_thinker(uri, thinker, tokenizer=tokenizer, lineage=lineage, entropy_threshold=9.0, helps=True)
    asked = ["generate", uri, "--prompt", "def", "--max-tokens", "2", "--think", "always", "--json"]
    shown, hidden = (json.loads(forge(*asked, *more).stdout)["thinking"] for more in (["--show-thoughts"], []))
    assert [thought["said"] for thought in shown.pop("thoughts")] == [0, 1]
    assert shown == hidden == {"mode": "always", "thought_tokens": 10, "per_token_said": 5.0}
    (tmp_path / "model/thinking/lineage.json").unlink()
    refused = forge(*asked)
    assert refused.returncode == 1
    assert "has not learned to think" in refused.stderr


def test_compliance_gives_findings_and_a_score() -> None:
    found = json.loads(forge("compliance", "pot10", "phases/seeds.py", "--json").stdout)
    assert 0 < found["score"] <= 1
    assert len(found["table"]) == 10


def test_bench_lists_the_benchmarks() -> None:
    names = forge("bench", "--names").stdout.split()
    assert "overhead" in names
