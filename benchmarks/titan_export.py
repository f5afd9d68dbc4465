"""The export of a TinyTitan as one ONNX file: does it write what torch writes, and how fast is it in int8?

Random weights, scaled so that the model has opinions: ties would be decided by the order of a sum. Its halting head is
random, too, so that tokens stop at different steps. Speed is that of greedy decoding, batch 1, on one thread, against
torch's own cached generation, in turns by CPU time.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.harness import Baseline, Figure, interleave, progress, ratio_figure
from phases.baking.optimise.session import SessionSettings
from phases.baking.optimise.titan_export import export_titan
from phases.baking.optimise.titan_runtime import OnnxTitan, TitanStream
from phases.baking.optimise.transforms import int8_dynamic
from phases.cognate.presets import PRESETS
from phases.cognate.state import State
from phases.cognate.titan import TinyTitan

_CELLS = [(batch, length, past) for batch in (1, 3) for length in (1, 7) for past in (0, 1, 150)]
_DECODED, _PROMPT = 32, 128


def figures(quick: bool) -> list[Figure]:
    """Export, compare and time. Quick: fewer tokens and repetitions, and the nano model throughout."""
    with TemporaryDirectory() as folder:
        return [_identical(Path(folder), 48 if quick else 256), *_speed(Path(folder), quick)]


def opinionated(size: str) -> TinyTitan:
    """Return a random model of a preset whose likeliest tokens stand out, and which halts now early, now late."""
    torch.manual_seed(0)
    model = TinyTitan(PRESETS[size]).eval().requires_grad_(False)
    model.embedding.weight.mul_(20)
    model.halting.linear.weight.normal_(std=1.0)
    model.halting.linear.bias.fill_(2.9)  # the threshold of 0.95
    return model


def _identical(folder: Path, count: int) -> Figure:
    """Count the cells of batch, length and past in which all greedy tokens are those of torch."""
    progress("exporting the nano model")
    model, file = opinionated("nano"), folder / "nano.onnx"
    export_titan(model, file)
    onnx, same, steps = OnnxTitan(file), 0, list[float]()
    for number, (batch, length, past) in enumerate(_CELLS):
        rng = np.random.default_rng(number)
        before, prompt = (rng.integers(16, model.config.vocab_size, (batch, n)) for n in (past, length))
        stream, state = onnx.stream(batch), model.empty_state(batch)
        if past:
            stream.read(before)
            steps.append(float(model.read(torch.from_numpy(before), state).steps.float().mean()))
        same += bool((stream.greedy(prompt, count) == greedy(model, state, prompt, count)).all())
        progress(f"batch {batch}, length {length}, past {past}: {same} of {number + 1} cells identical")
    return Figure(
        key="export_identical",
        value=same,
        unit=f"of {len(_CELLS)} cells, {count} tokens each",
        better="higher",
        goal=len(_CELLS),
        baseline=Baseline(what="mean ponder steps, of at most 2", value=float(np.mean(steps))),
    )


@torch.inference_mode()
def greedy(model: TinyTitan, state: State, prompt: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` tokens (B, count) that torch writes behind `prompt` (B, T), as `generate.py` reads on."""
    chosen, unread = np.zeros((len(prompt), count), np.int64), torch.from_numpy(prompt)
    for place in range(count):
        model.read(unread, state)
        assert state.prediction is not None
        unread = state.prediction.argmax(-1, keepdim=True)
        chosen[:, place] = unread[:, 0].numpy()
    return chosen


def _speed(folder: Path, quick: bool) -> list[Figure]:
    """Time decoding behind a prompt: torch, the file in fp32 and in int8."""
    size = "nano" if quick else "25m"
    progress(f"exporting the {size} model")
    model, full, small = opinionated(size), folder / "full.onnx", folder / "int8.onnx"
    export_titan(model, full)
    int8_dynamic(full, small, ())
    prompt = np.random.default_rng(0).integers(16, model.config.vocab_size, (1, _PROMPT))
    streams = {name: OnnxTitan(file, SessionSettings()).stream() for name, file in (("fp32", full), ("int8", small))}
    state = model.empty_state(1)
    model.read(torch.from_numpy(prompt), state)
    for stream in streams.values():
        stream.read(prompt)
    last = prompt[:, -1:]
    calls = {"torch": lambda: greedy(model, state, last, _DECODED)}
    samples = interleave(calls | {n: _decoder(s, last) for n, s in streams.items()}, 5 if quick else 15, warmup=2)
    int8 = ratio_figure("export_int8_speed", samples, "int8", "torch", goal=2.0, work=_DECODED, what="torch, tokens/s")
    return [
        int8.model_copy(update={"unit": f"x, greedy decoding, {size}"}),
        ratio_figure("export_fp32_speed", samples, "fp32", "torch", work=_DECODED, what="torch, tokens/s"),
        Figure(
            key="export_int8_size",
            value=full.stat().st_size / small.stat().st_size,
            unit="x smaller than the fp32 file",
            better="higher",
        ),
    ]


def _decoder(stream: TitanStream, last: np.ndarray) -> Callable[[], object]:
    return lambda: stream.greedy(last, _DECODED)
