"""What other recipes for ternary weights are worth: each trained as the default one is, from the same parent.

Parts of the default are taken away (distillation, row scales, least squares, the second stage, Muon, the high learning
rate), and what the literature adds is added: quantisation that is faded in (lambda warm-up, HuggingFace 2024), a norm
before the output projections (SubLN, Wang et al. 2023), learned row scales (LSQ, Esser et al. 2020). Quality is that of
the model in torch with all that it was trained with, so an alternative is not charged for what an export would lose.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Baseline, Figure, progress, torch_threads
from benchmarks.text_model import batches, corpus_of, parent, recipe_of
from phases.bitnet.config import HeldOutConfig, QuantisationConfig, RecipeConfig
from phases.bitnet.linear import BitLinear
from phases.bitnet.quality import Tokens, bits_per_byte, streams
from phases.bitnet.recipe import Lesson, teach
from phases.bitnet.ternary import ternarise
from phases.bitnet.titan import BitTitan, to_bitnet
from phases.cognate.norm import RMSNorm
from phases.cognate.titan import TinyTitan
from phases.corpus.packed import Corpus
from phases.training.config import TrainingConfig
from phases.training.loop import StepReport

L = TypeVar("L", bound=BitLinear)
_RATE = RecipeConfig().training.learning_rate
_WARM_UP = 0.3  # share of the steps in which quantisation is faded in
_HELD_OUT = HeldOutConfig(tokens=32_768, streams=32)
_DEFAULT = "default"
_SETTINGS: dict[str, dict[str, Any]] = {  # what differs from the default recipe
    _DEFAULT: {},
    "without_distillation": {"distillation": 0.0},
    "without_row_scales": {"layout": "tensor"},
    "without_least_squares": {"method": "absmean"},
    "without_second_stage": {"second_stage": 0.0},
    "with_adamw": {"optimizer": "adamw", "learning_rate": 2 * _RATE},  # each its best rate
    "rate_halved": {"learning_rate": _RATE / 2},
    "rate_doubled": {"learning_rate": _RATE * 2},
    "with_lambda_warm_up": {},
    "with_subln": {},
    "with_learned_scales": {},
}


def run(quick: bool) -> list[Figure]:
    """Return the bits per byte of each alternative over the default recipe's; quickly, after few steps."""
    steps, seeds = (200, 1) if quick else (1000, 2)
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):
        corpus = corpus_of(Path(folder) / "corpus")
        model, rows = parent(corpus, steps), streams(corpus, "test", _HELD_OUT)
        found = {
            name: [_bits(name, model, corpus, steps // 10, seed, rows) for seed in range(seeds)] for name in _SETTINGS
        }
    return [_figure(name, found) for name in found if name != _DEFAULT]


def _figure(name: str, found: Mapping[str, list[float]]) -> Figure:
    ratios = [bits / default for bits, default in zip(found[name], found[_DEFAULT], strict=True)]
    return Figure(
        key=name,
        value=statistics.mean(ratios),
        unit="x the default recipe's bits per byte",
        better="lower",
        baseline=Baseline(what="default recipe, bits per byte", value=statistics.mean(found[_DEFAULT])),
        low=min(ratios),
        high=max(ratios),
        raw={"seeds": found[name]},
    )


def _bits(name: str, model: TinyTitan, corpus: Corpus, steps: int, seed: int, rows: Tokens) -> float:
    """Return the bits per byte of the parent quantised and trained in a way."""
    changed = _SETTINGS[name]
    fields = [{k: v for k, v in changed.items() if k in c.model_fields} for c in (QuantisationConfig, RecipeConfig)]
    run = {k: v for k, v in changed.items() if k in TrainingConfig.model_fields}
    recipe = recipe_of(steps, **run).model_copy(update=fields[1])
    lesson, student = Lesson(model, batches(corpus, 100 + seed)), to_bitnet(model, QuantisationConfig(**fields[0]))
    if name in _CHANGES:
        lesson = _CHANGES[name](student, lesson, steps)
    teach(student, lesson, recipe)
    bits = bits_per_byte(student.eval(), rows, corpus.token_bytes)
    progress(f"seed {seed}, {name}: {bits:.4f} bits per byte")
    return bits


class _Faded(BitLinear):
    """A layer that is quantised by a share: 0 is full precision, 1 is `BitLinear`."""

    share = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        inputs = x.lerp(self.activations(x), self.share)
        return F.linear(inputs, self.weight.lerp(self.latent(self.weight), self.share), self.bias)


class _Learned(BitLinear):
    """A layer whose row scales are parameters, with the gradient of LSQ (Esser et al. 2020, equations 1 to 5)."""

    scale: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        damped = self.scale * self.weight.shape[1] ** -0.5
        scale = damped + (self.scale - damped).detach()
        ratios = (self.weight / scale).clamp(-1, 1)
        codes = ratios + (ratios.round() - ratios).detach()
        return F.linear(self.activations(x), codes * scale, self.bias)


class _Normed(nn.Module):
    """A layer behind a norm, whose gain begins as the root mean square of what the layer had as input."""

    def __init__(self, layer: BitLinear, gain: float) -> None:
        super().__init__()
        self.norm, self.layer = RMSNorm(layer.in_features), layer
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        y: Tensor = self.layer(self.norm(x))
        return y


def _fade_in(student: BitTitan, lesson: Lesson, steps: int) -> Lesson:
    """Quantise from nothing to full strength within a share of the steps."""
    faded = list[_Faded]()
    for name, layer in _ternary(student):
        student.set_submodule(name, like := _like(layer, _Faded))
        faded.append(like)

    def ramp(report: StepReport) -> None:
        for layer in faded:
            layer.share = min(1.0, (report.step + 1) / (_WARM_UP * steps))

    return replace(lesson, on_step=ramp)


def _learn_scales(student: BitTitan, lesson: Lesson, steps: int) -> Lesson:
    for name, layer in _ternary(student):
        learned = _like(layer, _Learned)
        learned.scale = nn.Parameter(ternarise(layer.weight.detach()).row_scale.clone())
        student.set_submodule(name, learned)
    return lesson


@torch.no_grad()
def _norm(student: BitTitan, lesson: Lesson, steps: int) -> Lesson:
    """Put norms before the projections that end attention and the feed-forward part."""
    seen = dict[str, float]()

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda module, inputs: seen.update({name: float(inputs[0].square().mean().sqrt())})

    names = [name for name, _ in _ternary(student) if name.endswith((".out", ".down"))]
    hooks = [lesson.parent.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    lesson.parent.evaluate(lesson.batches(0))
    for hook in hooks:
        hook.remove()
    for name in names:
        layer = student.get_submodule(name)
        assert isinstance(layer, BitLinear)
        student.set_submodule(name, _Normed(layer, seen[name]))
    return lesson


_CHANGES: dict[str, Callable[[BitTitan, Lesson, int], Lesson]] = {
    "with_lambda_warm_up": _fade_in,
    "with_subln": _norm,
    "with_learned_scales": _learn_scales,
}


def _ternary(student: BitTitan) -> list[tuple[str, BitLinear]]:
    """Return the layers of the blocks by name."""
    modules = student.named_modules()
    return [(name, m) for name, m in modules if isinstance(m, BitLinear) and name.startswith("blocks.")]


def _like(layer: BitLinear, kind: type[L]) -> L:
    """Return a layer of a kind that takes over everything of `layer`."""
    return kind(layer, layer.latent.quantiser, layer.activations)
