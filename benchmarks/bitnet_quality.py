"""What ternary weights cost in quality: the exported file against full precision with the same further steps.

A nano model is trained on the standard library's text, then goes on for a tenth of its steps in several ways: quantised
under its own eyes; in full precision; and with torchao's `bitnet_training`. Each has the learning rate of three that
the first seed's validation loss prefers. Seeds are of the data order; the worst counts, and of the gaps to torchao's
the mean. What the embedding costs is measured against a student whose embedding stays in fp32, on the first seed.
Student and control have the optimiser of the default recipe, the peer AdamW, as its documentation has it.
"""

import copy
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Baseline, Figure, progress, torch_threads
from benchmarks.text_model import batches, corpus_of, parent, recipe_of, training
from phases.bitnet.config import HeldOutConfig, QuantisationConfig, RecipeConfig, RowFormat
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import pack
from phases.bitnet.quality import Tokens, bits_per_byte, file_bits_per_byte, streams
from phases.bitnet.recipe import Lesson, Model, control, quantise, sweep
from phases.bitnet.titan import BitTitan
from phases.cognate.titan import TinyTitan
from phases.corpus.packed import Corpus
from phases.training.loop import train

_CONTROL_RATES, _RATES = (2.5e-4, 5e-4, 1e-3), (1e-3, 2e-3, 4e-3)
_HELD_OUT = HeldOutConfig(tokens=32_768, streams=32)


@dataclass(frozen=True)
class _Trial:
    """What every run shares."""

    parent: TinyTitan
    corpus: Corpus
    steps: int
    folder: Path
    validation: Tokens
    test: Tokens

    def lesson(self, seed: int) -> Lesson:
        """Return the parent and the rows of a seed."""
        return Lesson(self.parent, batches(self.corpus, 100 + seed))

    @property
    def recipe(self) -> RecipeConfig:
        """The run's own steps and learning rate."""
        return recipe_of(self.steps)

    def bits(self, model: TinyTitan, rows: Tokens) -> float:
        """Return bits per byte of a model in torch."""
        return bits_per_byte(model, rows, self.corpus.token_bytes)

    def student(self, seed: int, rate: float, embedding: RowFormat = "int8") -> BitTitan:
        """Train a quantised student."""
        progress(f"seed {seed}: quantised, embedding in {embedding}, {self.steps} steps at {rate:g}")
        quantisation = QuantisationConfig(embedding=embedding)
        return quantise(self.lesson(seed), quantisation, self.recipe, learning_rate=rate)

    def best(self, rates: tuple[float, ...], make: Callable[[float], Model]) -> tuple[Model, float]:
        """Return the model of the learning rate that validation prefers, and that rate."""
        found, losses = sweep(rates, make, lambda model: self.bits(model, self.validation))
        return found, min(losses, key=losses.__getitem__)

    def file(self, student: BitTitan) -> float:
        """Return the bits per byte of a student's file on the test split."""
        path = self.folder / "model.onnx"
        write_onnx(pack(student), path)
        return file_bits_per_byte(OnnxModel(path), self.test, self.corpus.token_bytes)


def figures(quick: bool) -> list[Figure]:
    """Train, and return `bpb_ratio_fp_control`, `gap_vs_torchao` and what the embedding costs."""
    steps, seeds = (300, 1) if quick else (2000, 3)
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):
        corpus = corpus_of(Path(folder) / "corpus")
        splits = (streams(corpus, split, _HELD_OUT) for split in ("validation", "test"))
        trial = _Trial(parent(corpus, steps), corpus, steps // 10, Path(folder), *splits)
        rate, first = _best_control(trial)
        student, own_rate = trial.best(_RATES, lambda rate: trial.student(0, rate))
        files = [trial.file(student)] + [trial.file(trial.student(seed, own_rate)) for seed in range(1, seeds)]
        controls = [first] + [
            trial.bits(control(trial.lesson(s), trial.recipe, rate), trial.test) for s in range(1, seeds)
        ]
        ratios = [file / fair for file, fair in zip(files, controls, strict=True)]
        worst = ratios.index(max(ratios))
        ratio = Figure(
            key="bpb_ratio_fp_control",
            value=ratios[worst],
            unit="x, exported file, worst seed",
            better="lower",
            goal=None if quick else 1.05,
            baseline=Baseline(what="full precision, same further steps, bits per byte", value=controls[worst]),
            raw={"ratios": ratios, "file": files, "control": controls, "rates": [own_rate, rate]},
        )
        loss = Figure(
            key="loss_of_quality",
            value=100 * (ratios[worst] - 1),
            unit="% of bits per byte",
            better="lower",
            baseline=Baseline(what="claimed by the documents", value=7.0),
        )
        return [
            ratio,
            loss,
            *_embedding(trial, own_rate, files[0], quick),
            *_against_torchao(trial, files, controls, quick),
        ]


def _best_control(trial: _Trial) -> tuple[float, float]:
    """Return the learning rate that is best for the control on the first seed, and its bits per byte there."""
    progress(f"control, {trial.steps} steps at {len(_CONTROL_RATES)} learning rates")
    fair, rate = trial.best(_CONTROL_RATES, lambda rate: control(trial.lesson(0), trial.recipe, rate))
    return rate, trial.bits(fair, trial.test)


def _embedding(trial: _Trial, rate: float, int8: float, quick: bool) -> list[Figure]:
    """Compare students whose embeddings are quantised in the loop with one whose embedding is not."""
    plain, int4 = (trial.file(trial.student(0, rate, form)) for form in ("fp32", "int4"))
    return [
        Figure(
            key=f"embedding_{form}_cost",
            value=100 * (found / plain - 1),
            unit="% of bits per byte",
            better="lower",
            goal=None if quick else goal,
            baseline=Baseline(what="embedding in fp32, bits per byte", value=plain),
        )
        for form, found, goal in (("int8", int8, 0.3), ("int4", int4, 1.0))
    ]


def _against_torchao(trial: _Trial, files: list[float], controls: list[float], quick: bool) -> list[Figure]:
    """Compare the gaps to the control. torchao's students have ternary blocks only, all else in full precision."""
    if importlib.util.find_spec("torchao") is None:
        progress("gap_vs_torchao left out: torchao is not installed (pip install 'agent-forge[dev]')")
        return []
    best, rate = trial.best(_RATES, lambda rate: _torchao(trial, 0, rate))
    peers = [trial.bits(best, trial.test)]
    peers += [trial.bits(_torchao(trial, seed, rate), trial.test) for seed in range(1, len(files))]
    gaps = [(theirs - fair, ours - fair) for theirs, ours, fair in zip(peers, files, controls, strict=True)]
    if min(theirs for theirs, _ in gaps) <= 0:
        progress(f"gap_vs_torchao left out: torchao's bits per byte, {peers}, have no gap to the controls', {controls}")
        return []
    ratios = [ours / theirs for theirs, ours in gaps]
    return [
        Figure(
            key="gap_vs_torchao",
            value=statistics.mean(ratios),
            unit="x of its gap to the control",
            better="lower",
            goal=None if quick else 0.5,
            baseline=Baseline(what="torchao bitnet_training, bits per byte", value=statistics.mean(peers)),
            low=min(ratios),
            high=max(ratios),
            raw={"ratios": ratios, "torchao": peers, "rate": [rate]},
        )
    ]


def _torchao(trial: _Trial, seed: int, rate: float) -> TinyTitan:
    """Return the parent after the same steps with torchao's ternary linear layers, as its documentation has them."""
    from torchao.prototype.quantized_training import bitnet_training
    from torchao.quantization import quantize_

    progress(f"seed {seed}: torchao, {trial.steps} steps at {rate:g}")
    model = copy.deepcopy(trial.parent)
    quantize_(model.blocks, bitnet_training())
    config = training(trial.steps, rate).model_copy(update={"precision": "fp32"})  # it knows nothing of autocast
    train(model, trial.lesson(seed).batches, config, on_step=lambda report: None, save=lambda state: None)
    return model.eval()
