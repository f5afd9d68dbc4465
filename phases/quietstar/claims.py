"""The claims of phase 3, each beside what it has to be compared with, and the verdict in words.

A model that thinks is compared with the same model that does not, and with one that was trained as long on the same
rows without thoughts: only what is better than both is a gain of thinking. Random tokens in the thoughts' places say
how much of it is in what they say.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from phases.contract import Baseline, Claim, Probe
from phases.probes import RunFiles, claim, measure
from phases.quietstar.coherence import WEIGHTS
from phases.quietstar.config import QuietStarConfig
from phases.quietstar.measure import WORTH


class _Shape(NamedTuple):
    key: str
    probe: Probe
    unit: str
    better: Literal["higher", "lower"]
    tolerance: float
    baseline: Baseline | None = None
    target: float | None = None


def claims_of(
    files: RunFiles, config: QuietStarConfig, seed: int, parent: str
) -> tuple[list[Claim], tuple[float, float]]:
    """Return the claims about the phase's model, and the 95% interval of the gain in bits per byte."""
    arguments: dict[str, Any] = {"config": config.model_dump(mode="json"), "seed": seed, "parent": parent}

    def text(quantity: str) -> Probe:
        return Probe(name="quietstar/text", arguments={"quantity": quantity, **arguments})

    def against(quantity: str, what: str) -> Baseline:
        return Baseline(what=what, value=measure(files, text(quantity)).value)

    control = against("control", "as many further steps without thoughts")
    before = against("parent", "the model before the phase")
    random = against("gain_random", "random tokens as thoughts")
    entropy = Probe(name="quietstar/entropy", arguments=arguments)
    shapes = [
        _Shape("bits_per_byte", text("within"), "bits per byte", "lower", 0.005, control),
        _Shape("bits_per_byte_without_thoughts", text("without"), "bits per byte", "lower", 0.005, before),
        _Shape("text_gain", text("gain"), "bits per byte saved", "higher", 0.005, random),
        _Shape("mixing_weight", text("weight"), "weight of thoughts", "higher", 0.005),
        _Shape("thought_cost", text("cost"), "tokens thought per token of text", "lower", 0.01),
        _Shape("thought_entropy", entropy, "nats per thought token", "lower", 0.02),
    ]
    for part in (*WEIGHTS, "total"):
        probe = Probe(name="quietstar/coherence", arguments={"part": part, **arguments})
        target = config.coherence_threshold if part == "total" else None
        shapes.append(_Shape(f"coherence/{part}", probe, "score in [0, 1]", "higher", 0.01, target=target))
    made = [claim(files, f"quietstar/{key}", probe, **rest) for key, probe, rest in map(_arguments, shapes)]
    low, high = (measure(files, text(end)).value for end in ("low", "high"))
    return made, (low, high)


def notes_of(claims: Sequence[Claim], interval: tuple[float, float], *, helps: bool) -> tuple[str, ...]:
    """Return in words whether thinking was worth it, and what `auto` makes of that."""
    values = {made.key: made for made in claims}
    gain, within = values["quietstar/text_gain"], values["quietstar/bits_per_byte"]
    low, high = interval
    changed = f"{gain.value:+.4f} bits per byte of held-out text ({low:+.4f} to {high:+.4f})"
    notes = [f"Thoughts {'help' if low > WORTH else 'do not help'}: they save {changed}."]
    assert within.baseline is not None
    assert gain.baseline is not None
    if low > WORTH and gain.value <= gain.baseline.value:
        notes.append(f"What they say does not matter: random tokens save {gain.baseline.value:+.4f}.")
    if within.value >= within.baseline.value:
        notes.append(
            f"No gain over training without thoughts: {within.value:.4f} bits per byte with them,"
            f" {within.baseline.value:.4f} after {within.baseline.what}."
        )
    if not helps:
        notes.append("`--think auto` does not think with this model: on validation text thoughts did not help.")
    return tuple(notes)


def _arguments(shape: _Shape) -> tuple[str, Probe, dict[str, Any]]:
    return shape.key, shape.probe, dict(list(shape._asdict().items())[2:])
