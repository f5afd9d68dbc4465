"""What thoughts are worth on real text: a nano model learns to think there, others go on reading without thoughts.

One of the others reads as many tokens, one trains for as much CPU time. All are measured on the same held-out text,
thoughts greedy. The text is the standard library's, the thoughts are those of the pipeline's defaults.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Baseline, Figure, progress
from benchmarks.text_model import batches, corpus_of, parent, training
from phases.cognate.titan import TinyTitan
from phases.corpus.packed import Corpus
from phases.quietstar import sources
from phases.quietstar.config import QuietStarConfig
from phases.quietstar.measure import TextMeasured, measure_text
from phases.quietstar.phase import text_rows
from phases.quietstar.thinker import Thinker
from phases.training.loop import train

_SHAPE = 4, 128
_RATE = 5e-4
_CONFIG = QuietStarConfig.model_validate({"evaluation": {"rows": 64}})


@dataclass(frozen=True)
class _Measured:
    """The model with thoughts, with random ones, and the nats (R, T) of those that read on."""

    thinking: TextMeasured
    random: TextMeasured
    tokens: Tensor  # as many tokens
    compute: Tensor  # as much CPU time


def figures(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """Train from the same parent for each seed, and return `text_gain` and what else it could be due to."""
    steps, updates = (200, 10) if quick else (600, 40)
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(Path(folder) / "corpus")
        model = parent(corpus, steps)
        found = [_measure(model, corpus, seed, updates) for seed in seeds]
    return [
        _gain("text_gain", "reading on for as much CPU time", [replace(f.thinking, without=f.compute) for f in found]),
        _gain(
            "text_gain_tokens", "reading on for as many tokens", [replace(f.thinking, without=f.tokens) for f in found]
        ),
        _gain("text_gain_own", "the same model without thoughts", [f.thinking for f in found]),
        _gain("text_gain_random", "the same model, random thoughts", [f.random for f in found]),
    ]


def _measure(model: TinyTitan, corpus: Corpus, seed: int, updates: int) -> _Measured:
    torch.manual_seed(seed)
    thinker = Thinker(copy.deepcopy(model), _CONFIG.thought, _CONFIG.learning)
    thought = _train(thinker, corpus, seed, updates)
    tokens, compute = copy.deepcopy(model), copy.deepcopy(model)
    read = _train(tokens, corpus, seed, updates)
    longer = round(updates * thought / read)
    _train(compute, corpus, seed, longer)
    progress(f"seed {seed}: {updates} updates with thoughts in {thought:.0f} s, without in {read:.0f} s; {longer} then")
    rows = text_rows(corpus, _CONFIG, "test")
    torch.manual_seed(seed)
    with torch.no_grad():
        return _Measured(
            measure_text(thinker.eval(), rows, corpus.token_bytes),
            measure_text(thinker, rows, corpus.token_bytes, sources.random),
            tokens.eval().evaluate(rows).nll,
            compute.eval().evaluate(rows).nll,
        )


def _train(learner: Thinker | TinyTitan, corpus: Corpus, seed: int, steps: int) -> float:
    """Train in place and return the CPU seconds."""
    start = time.process_time()
    config, rows = training(steps, _RATE, _SHAPE), batches(corpus, 100 + seed, _SHAPE)
    train(learner, rows, config, on_step=lambda report: None, save=lambda state: None)
    return time.process_time() - start


def _gain(key: str, what: str, found: Sequence[TextMeasured]) -> Figure:
    """Return the bits per byte saved, with the 95% interval over the rows of all seeds."""
    together = replace(
        found[0],
        without=torch.cat([each.without for each in found]),
        within=torch.cat([each.within for each in found]),
        n_bytes=torch.cat([each.n_bytes for each in found]),
    )
    low, high = together.interval(_CONFIG.evaluation.resamples, 0)
    gains = [each.gain for each in found]
    progress(f"{key}: {statistics.mean(gains):+.4f} ({low:+.4f} to {high:+.4f})")
    return Figure(
        key=key,
        value=statistics.mean(gains),
        unit="bits per byte saved" + (": no gain" if low <= 0 else ""),
        better="higher",
        baseline=Baseline(what=f"{what}, bits per byte", value=together.bits_per_byte(together.without)),
        low=low,
        high=high,
        raw={"seeds": gains},
    )
