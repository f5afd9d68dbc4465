"""What can be optimised: an ONNX file, or one that is exported first from a torch program or a TinyTitan's directory.

A TinyTitan's file is one pass of tokens through the stack with its caches as inputs (`phases.bitnet.onnx_export`); it
is optimised on a pass over fresh tokens behind a past, and torch reads the same tokens for comparison.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from phases import modeldir
from phases.baking.optimise.inputs import Inputs, given_inputs, random_inputs
from phases.baking.optimise.program import export_program, open_program
from phases.baking.optimise.session import Feeds, SessionSettings, open_session, read_model
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.packed import Architecture, pack
from phases.cognate.loading import load_model
from phases.cognate.memory import CONV_WIDTH
from phases.cognate.titan import TinyTitan
from phases.errors import ArtifactError, ConfigError

_ABSENT = 1e30  # the fade of a slot that is not there


@dataclass(frozen=True)
class Source:
    """A full-precision file, what to run it on, and the torch model behind it, where there is one."""

    file: Path
    inputs: Inputs
    eager: Callable[[Feeds], object] | None = None
    tokenizer: str | None = None


def open_source(
    model: str, folder: Path, *, inputs: Path | None, sizes: Mapping[str, int], count: int = 8, seed: int = 0
) -> Source:
    """Return what `model` is. Raises `ForgeError`s naming what cannot be optimised, before anything is tried."""
    path, eager = Path(model), None
    if path.suffix not in (".onnx", ".pt2"):
        return titan_source(modeldir.find_model(model), folder, tokens=sizes.get("T", 32), count=count, seed=seed)
    if not path.is_file():
        raise ArtifactError(f"{model}: no such file; name an ONNX or .pt2 file, a model directory or a run")
    if path.suffix == ".pt2":
        program, path = open_program(path), folder / "exported.onnx"
        eager = one_thread(export_program(program, path))
    proto = read_model(path)
    session = open_session(path, SessionSettings())
    named = {str(axis) for each in session.get_inputs() for axis in each.shape if not isinstance(axis, int)}
    if unknown := [name for name in sizes if name not in named]:
        raise ConfigError.of(
            "--size", unknown[0], "no symbolic axis of the inputs", f"known are {', '.join(sorted(named))}"
        )
    if inputs is not None:
        return Source(path, given_inputs(session, inputs), eager)
    return Source(path, random_inputs(session, proto, sizes, count, seed), eager)


def one_thread(run: Callable[[Feeds], object]) -> Callable[[Feeds], object]:
    """Return `run` on one thread, as sessions are timed."""

    def alone(feeds: Feeds) -> object:
        torch.set_num_threads(1)
        return run(feeds)

    return alone


def titan_source(model: str, folder: Path, *, tokens: int, count: int, seed: int) -> Source:
    """Export a TinyTitan in full precision and draw passes over `tokens` tokens."""
    loaded = load_model(model, device="cpu")
    if tokens > loaded.model.config.segment_len:
        fix = f"use at most segment_len = {loaded.model.config.segment_len}"
        raise ConfigError.of("--size T", tokens, "more than a pass takes", fix)
    packed = pack(loaded.model)
    file = folder / "exported.onnx"
    write_onnx(packed, file)
    rng = np.random.default_rng(seed)
    parts = [[titan_feeds(packed.architecture, tokens, rng) for _ in range(count)] for _ in range(2)]
    return Source(file, Inputs(*parts), _one_pass(loaded.model), loaded.tokenizer.to_str())


def titan_feeds(a: Architecture, count: int, rng: np.random.Generator) -> Feeds:
    """Return the inputs of a first and last pass over `count` tokens with nothing before them."""
    assert a.titan is not None
    places, half = 2 * a.titan.segment_len, a.head_dim // 2
    angles = np.arange(count)[:, None] * a.rope_theta ** (-np.arange(half) / half)
    mask = np.full((count, places + count), -np.inf, np.float32)
    mask[:, places:][np.tril_indices(count)] = 0
    index = places + np.arange(count)[:, None] - np.arange(CONV_WIDTH - 1, -1, -1)
    cache = np.zeros((1, a.n_kv_heads, places, a.head_dim), np.float32)
    slots = np.zeros((a.titan.memory.top_k, a.d_model), np.float32)
    layers = {f"{kind}_{layer}": cache for layer in range(a.n_layers) for kind in ("key", "value")}
    return layers | {
        "tokens": rng.integers(0, a.vocab_size, count),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "mask": mask,
        "hidden": np.zeros((count, a.d_model), np.float32),
        "step": np.array(0),
        "last": np.array(True),
        "going_on": np.ones(count, np.float32),
        "slot_keys": slots,
        "slot_values": slots,
        "slot_fade": np.full(len(slots), _ABSENT, np.float32),
        "past_queries": np.zeros((places, a.d_model), np.float32),
        "query_index": index,
    }


def _one_pass(model: TinyTitan) -> Callable[[Feeds], object]:
    """Return torch reading the tokens of a feed in one pass, logits included."""
    config = model.config.model_copy(update={"train_ponder_steps": 1})
    single = TinyTitan(config)
    single.load_state_dict(model.state_dict())
    single.eval()

    @torch.inference_mode()
    def read(feeds: Feeds) -> object:
        return single(torch.from_numpy(feeds["tokens"]).unsqueeze(0))[0]

    return one_thread(read)
