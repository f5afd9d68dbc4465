"""Generation: one token from the state against the whole text again, and halting against running every step.

The model is the 25M preset with random weights: what is timed does not depend on what they have learned. For halting,
its head is set so that random tokens take two of eight steps on average, and the same model runs all eight where its
threshold is never reached.
"""

import copy

import torch

from benchmarks.harness import Baseline, Figure, interleave, progress, ratio_figure
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.errors import ForgeError

_LENGTHS = (16, 256, 1024)
_MEAN_STEPS, _MAX_STEPS = 2.0, 8
_TOKENS = 24


def run(quick: bool) -> list[Figure]:
    """Measure both on one thread, in CPU seconds."""
    torch.manual_seed(0)
    repetitions = 5 if quick else 15
    model = TinyTitan(PRESETS["25m"]).eval()
    lengths = _LENGTHS[:2] if quick else _LENGTHS
    return [*(_cached(model, length, repetitions) for length in lengths), *_early_exit(repetitions)]


@torch.inference_mode()
def _cached(model: TinyTitan, length: int, repetitions: int) -> Figure:
    """Compare the token behind `length` others, computed from the state and from scratch."""
    progress(f"cached against uncached at {length} tokens")
    tokens = torch.randint(16, model.config.vocab_size, (1, length + _TOKENS))
    _, state = model(tokens[:, :length])

    def cached() -> None:
        own = copy.deepcopy(state)
        for place in range(length, length + _TOKENS):
            model(tokens[:, place : place + 1], own)

    def uncached() -> None:
        model(tokens[:, : length + 1])

    seconds = interleave({"cached": cached, "uncached": uncached}, repetitions)
    seconds["cached"] = [value / _TOKENS for value in seconds["cached"]]
    what = "uncached, tokens per CPU s"
    return ratio_figure(f"cached_ratio_{length}", seconds, "cached", "uncached", goal=1.0, what=what)


@torch.inference_mode()
def _early_exit(repetitions: int) -> list[Figure]:
    """Compare a model that halts after two steps on average with itself running all eight."""
    progress("early exit")
    config = PRESETS["25m"].model_copy(update={"train_ponder_steps": _MAX_STEPS})
    adaptive = TinyTitan(config).eval()
    adaptive.halting.linear.weight.normal_(std=0.05)
    tokens = torch.randint(16, config.vocab_size, (1, 64))
    steps = set_mean_steps(adaptive, tokens, _MEAN_STEPS)
    fixed = copy.deepcopy(adaptive)
    fixed.halting.linear.bias.fill_(-100.0)

    def generate(model: TinyTitan) -> None:
        state = model.empty_state(1)
        for place in range(_TOKENS):
            _, state = model(tokens[:, place : place + 1], state)

    seconds = interleave({"adaptive": lambda: generate(adaptive), "fixed": lambda: generate(fixed)}, repetitions)
    what = f"{_MAX_STEPS} steps for every token, tokens per CPU s"
    ratio = ratio_figure("early_exit_ratio", seconds, "adaptive", "fixed", goal=2.5, work=_TOKENS, what=what)
    baseline = Baseline(what="fixed, steps", value=_MAX_STEPS)
    return [ratio, Figure(key="mean_steps", value=steps, unit="steps per token", better="lower", baseline=baseline)]


def set_mean_steps(model: TinyTitan, tokens: torch.Tensor, goal: float) -> float:
    """Move the halting bias until `tokens` take `goal` steps on average, by bisection; return what they take."""
    low, high = -10.0, 10.0
    for _ in range(20):
        middle = (low + high) / 2
        model.halting.linear.bias.fill_(middle)
        mean = float(model.read(tokens).steps.float().mean())
        if abs(mean - goal) < 0.1:
            return mean
        low, high = (middle, high) if mean > goal else (low, middle)
    raise ForgeError(f"benchmark generate: no halting bias gives {goal} mean steps (last {mean:.2f})")
