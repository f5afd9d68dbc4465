"""What ternary weights cost in quality: the exported file against full precision with the same further steps.

A nano model is trained on the standard library's text, then goes on for a tenth of its steps twice: quantised, under
its own eyes, and in full precision at the best of three learning rates by validation loss. Several seeds of the data
order; the worst counts.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Baseline, Figure, progress
from phases.bitnet.config import HeldOutConfig, QuantisationConfig, RecipeConfig
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import pack
from phases.bitnet.quality import bits_per_byte, file_bits_per_byte, streams
from phases.bitnet.recipe import Lesson, control, quantise, sweep
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.corpus.config import CorpusConfig
from phases.corpus.packed import Corpus
from phases.corpus.prepare import prepare
from phases.training.config import TrainingConfig
from phases.training.loop import train

_ROWS, _LENGTH = 8, 256
_CONTROL_RATES = (5e-4, 1e-3, 2e-3)
_HELD_OUT = HeldOutConfig(tokens=32_768, streams=32)


def figures(quick: bool) -> list[Figure]:
    """Train, and return `bpb_ratio_fp_control`."""
    steps, seeds = (300, 1) if quick else (2000, 3)
    with tempfile.TemporaryDirectory() as folder:
        config = CorpusConfig(vocab_size=2048, max_bytes=12_000_000)
        corpus = prepare(config, seed=0, folder=Path(folder) / "corpus", progress=lambda stage, share: None)
        parent = _parent(corpus, steps)
        pairs = [_compare(parent, corpus, steps // 10, seed, Path(folder)) for seed in range(seeds)]
    worst = max(pairs, key=lambda pair: pair[0] / pair[1])
    ratios = [file / fair for file, fair in pairs]
    return [
        Figure(
            key="bpb_ratio_fp_control",
            value=worst[0] / worst[1],
            unit="x, exported file, worst seed",
            better="lower",
            goal=None if quick else 1.05,
            baseline=Baseline(what="full precision, same further steps, bits per byte", value=worst[1]),
            raw={"ratios": ratios, "file": [p[0] for p in pairs], "control": [p[1] for p in pairs]},
        )
    ]


def _parent(corpus: Corpus, steps: int) -> TinyTitan:
    progress(f"training the parent for {steps} steps")
    torch.manual_seed(0)
    model = TinyTitan(PRESETS["nano"].model_copy(update={"vocab_size": corpus.vocab_size}))
    config = _training(steps, 4e-3).model_copy(update={"warmup_steps": 100 if steps > 500 else 20})
    train(model, _batches(corpus, 1), config, on_step=lambda report: None, save=lambda state: None)
    return model.eval()


def _compare(parent: TinyTitan, corpus: Corpus, steps: int, seed: int, folder: Path) -> tuple[float, float]:
    """Return bits per byte of the exported file and of the best control, on the test split."""
    progress(f"seed {seed}: quantised and control, {steps} steps each")
    lesson = Lesson(parent, _batches(corpus, 100 + seed))
    recipe = RecipeConfig(training=_training(steps, 4e-3))
    student = quantise(lesson, QuantisationConfig(), recipe)
    path = folder / "model.onnx"
    write_onnx(pack(student), path)
    validation, test = (streams(corpus, split, _HELD_OUT) for split in ("validation", "test"))

    def make(rate: float) -> TinyTitan:
        return control(lesson, recipe, rate)

    fair, _ = sweep(_CONTROL_RATES, make, lambda model: bits_per_byte(model, validation, corpus.token_bytes))
    found = file_bits_per_byte(OnnxModel(path), test, corpus.token_bytes)
    return found, bits_per_byte(fair, test, corpus.token_bytes)


def _training(steps: int, rate: float) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=_ROWS,
        seq_len=_LENGTH,
        learning_rate=rate,
        warmup_steps=min(10, steps),
        final_learning_rate=0.0,
        checkpoint_every=steps + 1,
    )


def _batches(corpus: Corpus, seed: int) -> Callable[[int], Tensor]:
    def batch(step: int) -> Tensor:
        rows = corpus.batch(step, batch_size=_ROWS, seq_len=_LENGTH, mix={"text": 1.0}, seed=seed)
        return torch.from_numpy(rows)

    return batch
