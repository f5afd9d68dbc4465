"""A nano model of real text to compare further training on: the standard library's sources."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import progress
from phases.bitnet.config import RecipeConfig
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.corpus.config import CorpusConfig
from phases.corpus.packed import Corpus
from phases.corpus.prepare import prepare
from phases.training.config import TrainingConfig
from phases.training.loop import train

SHAPE = 8, 256  # rows and tokens of a step


def corpus_of(folder: Path) -> Corpus:
    """Prepare the text in `folder`."""
    config = CorpusConfig(vocab_size=2048, max_bytes=12_000_000)
    return prepare(config, seed=0, folder=folder, progress=lambda stage, share: None)


def parent(corpus: Corpus, steps: int) -> TinyTitan:
    """Return a model that was trained for `steps` steps."""
    progress(f"training the parent for {steps} steps")
    torch.manual_seed(0)
    model = TinyTitan(PRESETS["nano"].model_copy(update={"vocab_size": corpus.vocab_size}))
    config = training(steps, 4e-3).model_copy(update={"warmup_steps": 100 if steps > 500 else 20})
    train(model, batches(corpus, 1), config, on_step=lambda report: None, save=lambda state: None)
    return model.eval()


def training(steps: int, rate: float, shape: tuple[int, int] = SHAPE) -> TrainingConfig:
    """Return the configuration of a run that ends at a rate of 0. `shape` is that of a step: rows, tokens."""
    return TrainingConfig(
        steps=steps,
        batch_size=shape[0],
        seq_len=shape[1],
        learning_rate=rate,
        warmup_steps=min(10, steps),
        final_learning_rate=0.0,
        checkpoint_every=steps + 1,
    )


def recipe_of(steps: int, **changes: Any) -> RecipeConfig:
    """Return phase 4's default recipe, but of so many steps of `SHAPE`, and with `changes` to its training."""
    default = RecipeConfig()
    own = {"optimizer": default.training.optimizer} | changes
    run = training(steps, default.training.learning_rate).model_copy(update=own)
    return default.model_copy(update={"training": run})


def batches(corpus: Corpus, seed: int, shape: tuple[int, int] = SHAPE) -> Callable[[int], Tensor]:
    """Return the rows of each step."""

    def batch(step: int) -> Tensor:
        found = corpus.batch(step, batch_size=shape[0], seq_len=shape[1], mix={"text": 1.0}, seed=seed)
        return torch.from_numpy(found)

    return batch
