"""What can be optimised: an ONNX file, or one that is exported first from a torch program or a TinyTitan's directory.

A TinyTitan's file is the whole model, its ponder loop included (`titan_export.py`); it is optimised on reading a piece
of text, and torch reads the same tokens for comparison.
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
from phases.baking.optimise.titan_export import export_titan
from phases.baking.optimise.titan_runtime import OnnxTitan
from phases.cognate.loading import load_model
from phases.cognate.titan import TinyTitan
from phases.errors import ArtifactError, ConfigError


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
    """Export a TinyTitan in full precision, once to a folder, and draw pieces of `tokens` tokens to read.

    Raises `ConfigError` for pieces that are longer than a segment, which no single pass reads.
    """
    loaded = load_model(model, device="cpu")
    config = loaded.model.config
    if tokens > config.segment_len:
        fix = f"use at most segment_len = {config.segment_len}"
        raise ConfigError.of("--size T", tokens, "more than a pass takes", fix)
    file = folder / f"exported-{loaded.ref.sha256[:16]}.onnx"
    if not file.exists():
        export_titan(loaded.model, file)
    exported, rng = OnnxTitan(file), np.random.default_rng(seed)

    def draw() -> Feeds:
        return exported.stream().feeds(rng.integers(0, config.vocab_size, (1, tokens)))

    inputs = Inputs([draw() for _ in range(count)], [draw() for _ in range(count)])
    return Source(file, inputs, _reader(loaded.model), loaded.tokenizer.to_str())


def _reader(model: TinyTitan) -> Callable[[Feeds], object]:
    """Return torch reading the tokens of a feed, all ponder steps and logits included."""

    @torch.inference_mode()
    def read(feeds: Feeds) -> object:
        return model(torch.from_numpy(feeds["tokens"]), model.empty_state(1))[0]

    return one_thread(read)
