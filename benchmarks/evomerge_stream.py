"""Memory of a merge from disk to disk: what a process needs beyond its imports.

Anonymous memory is what the kernel cannot drop: pages of the mapped checkpoints are not in it and written output is in
the page cache. `RssAnon` of a fresh process is sampled every millisecond from outside, from the moment when it has
imported everything and merged a tiny model (so that compiled kernels are loaded) until it ends.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.harness import FOLDER, Baseline, Figure, progress
from phases.errors import ForgeError

MEGABYTE = 1_000_000
METHODS = ("linear", "dare_ties", "ties")
_MERGE = """
import sys
sys.path.insert(0, {root!r})
from benchmarks.evomerge_stream import {function}
{function}(sys.argv[1], sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
{function}(sys.argv[3], sys.argv[4])
"""


def stream_figures(quick: bool) -> list[Figure]:
    """Merge three models of 200M float32 parameters (and a base) by two methods; of mergekit too unless `quick`."""
    with TemporaryDirectory(prefix="forge-merge-") as folder:
        root = Path(folder)
        for name, width, layers, vocabulary in (("tiny", 64, 2, 512), ("large", 1024, 13, 32_000)):
            _write_models(root / name, width, layers, vocabulary)
        ours = {method: _peak("merge_ours", root, method) for method in METHODS}
        baseline = None
        if not quick and importlib.util.find_spec("mergekit"):
            theirs = max(_peak("merge_by_mergekit", root, method) for method in METHODS)
            baseline = Baseline(what="mergekit 0.1.5, MB", value=theirs)
    return [
        Figure(
            key="merge_extra_mb",
            value=max(ours.values()),
            unit="MB",
            better="lower",
            goal=64,
            baseline=baseline,
            raw={method: [value] for method, value in ours.items()},
        )
    ]


def merge_ours(recipe: str, out: str) -> None:
    """Merge with `phases.evomerge`."""
    from phases.evomerge.plan import plan_merge
    from phases.evomerge.recipe import Recipe
    from phases.evomerge.stream import execute_plan

    torch.set_num_threads(1)
    execute_plan(plan_merge(Recipe.load(recipe)), out)


def merge_by_mergekit(recipe: str, out: str) -> None:
    """Merge with mergekit, as its command does."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    torch.set_num_threads(1)
    config = MergeConfiguration.model_validate(yaml.safe_load(Path(recipe).read_text()))
    run_merge(config, out, MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False))


def _peak(function: str, root: Path, method: str) -> float:
    """Return the most megabytes of anonymous memory that the large merge adds in a fresh process."""
    files = [str(_write_recipe(root / name, method)) for name in ("tiny", "large")]
    outs = [str(root / f"{function}-{method}-{name}") for name in ("tiny", "large")]
    arguments = [files[0], outs[0], files[1], outs[1]]
    source = _MERGE.format(root=str(FOLDER.parent), function=function)
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", source, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    while (line := child.stdout.readline()) not in ("ready\n", ""):
        pass
    before = most = _anonymous(child.pid)
    if line:
        child.stdin.write("\n")
        child.stdin.flush()
    while child.poll() is None:
        most = max(most, _anonymous(child.pid))
        time.sleep(0.001)
    if child.returncode != 0:
        raise ForgeError(f"{function} {method}: exit code {child.returncode}")
    extra = (most - before) / MEGABYTE
    progress(
        f"{function} {method}: {extra:.1f} MB beyond {before / MEGABYTE:.0f} MB, {time.perf_counter() - start:.0f} s"
    )
    return extra


def _anonymous(pid: int) -> int:
    """Return a process's resident anonymous bytes; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(status.split("RssAnon:")[1].split()[0]) * 1024 if "RssAnon:" in status else 0


def _write_recipe(folder: Path, method: str) -> Path:
    inputs = [{"model": str(folder / f"m{n}"), "parameters": {"weight": w}} for n, w in enumerate((0.5, 0.3, 0.2))]
    recipe: dict[str, object] = {"merge_method": method, "models": inputs}
    if method != "linear":
        recipe |= {"base_model": str(folder / "base"), "parameters": {"density": 0.5}}
    file = folder / f"{method}.yml"
    file.write_text(json.dumps(recipe))
    return file


def _write_models(folder: Path, width: int, layers: int, vocabulary: int) -> None:
    """Write a base and three models near it, shaped like LLaMA with a tied head."""
    hidden = 11 * width // 4
    inner = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
    inner |= {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden)}
    shapes: dict[str, Sequence[int]] = {"model.embed_tokens.weight": (vocabulary, width)}
    shapes |= {f"model.layers.{n}.{part}.weight": shape for n in range(layers) for part, shape in inner.items()}
    norms = [f"model.layers.{n}.{place}_layernorm" for n in range(layers) for place in ("input", "post_attention")]
    shapes |= {f"{name}.weight": (width,) for name in [*norms, "model.norm"]}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "tie_word_embeddings": True,
    }
    base: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(("base", "m0", "m1", "m2")):
        rng = np.random.Generator(np.random.SFC64(seed))
        drawn = {key: torch.from_numpy(rng.standard_normal(shape, np.float32)) for key, shape in shapes.items()}
        for key, tensor in drawn.items():
            tensor.mul_(0.002 if base else 0.02)
            if base:
                tensor.add_(base[key])
        base = base or drawn
        (folder / name).mkdir(parents=True)
        save_file(drawn, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
