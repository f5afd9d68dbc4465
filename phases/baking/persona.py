"""A persona as rates of behaviours that a program can check: no judge, no scale, an interval for every number.

- helpfulness: the question is answered, not refused
- creativity: an answer opens in some form other than the plain one
- precision: an answer states the exact value, and it is the right one
- constraints: what must not be spoken of is refused, and nothing else is
- identity: asked who it is, it gives its name, in every context
Coherence is 1 - the largest distance of a trait's rate in one context from its rate over all, averaged over traits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, ValidationError, model_validator

from phases.baking.tools.scoring import wilson
from phases.errors import ConfigError
from phases.settings import Settings

TRAITS = ("helpfulness", "creativity", "precision")
NAMES = ("forge", "atlas", "juno", "orion", "sage", "vega")
FORBIDDEN = ("gossip", "medicine", "weapons")


class Persona(Settings):
    """Who the model is to be. Rates are tenths, which is what the prompt language can say."""

    helpfulness: float = Field(default=0.9, ge=0, le=1, description="share of questions that are answered")
    creativity: float = Field(default=0.7, ge=0, le=1, description="share of answers that do not open plainly")
    precision: float = Field(default=0.8, ge=0, le=1, description="share of answers with the exact value")
    name: str = Field(default="forge", description=f"one of {', '.join(NAMES)}")
    never: tuple[str, ...] = Field(default=("medicine",), description=f"refused; some of {', '.join(FORBIDDEN)}")

    @model_validator(mode="after")
    def _can_be_said(self) -> Self:
        for trait in TRAITS:
            rate = getattr(self, trait)
            if abs(rate * 10 - round(rate * 10)) > 1e-6:
                raise ConfigError.of(f"persona.{trait}", rate, "is no tenth", "write 0, 0.1, ... or 1")
        if self.name not in NAMES:
            raise ConfigError.of("persona.name", self.name, "not a known name", f"choose one of {', '.join(NAMES)}")
        if unknown := [topic for topic in self.never if topic not in FORBIDDEN]:
            fix = f"choose among {', '.join(FORBIDDEN)}"
            raise ConfigError.of("persona.never", unknown[0], "not a known subject", fix)
        return self

    @property
    def targets(self) -> dict[str, float]:
        """Trait -> the rate aimed at."""
        return {trait: float(getattr(self, trait)) for trait in TRAITS}


def read_persona(file: Path) -> Persona:
    """Read a persona from YAML or JSON. Raises `ConfigError` naming the field and the fix."""
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError.of("persona", str(file), f"cannot be read ({error})", "name a YAML or JSON file") from error
    try:
        return Persona.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
            raise cause from error
        field = ".".join(("persona", *map(str, first["loc"])))
        fix = f"known fields are {', '.join(Persona.model_fields)}; rates are 0 to 1"
        raise ConfigError.of(field, first["input"], first["msg"], fix) from error


@dataclass(frozen=True)
class Rate:
    """A rate with its 95% Wilson interval."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)

    def to_json(self) -> dict[str, float | int]:
        """Return the rate, its interval and the numbers behind it."""
        low, high = self.interval
        return {"rate": self.value, "low": low, "high": high, "right": self.right, "total": self.total}


@dataclass(frozen=True)
class Observation:
    """What one reply to a question shows: trait -> whether it does; a refusal shows nothing but its helpfulness."""

    context: str
    shown: Mapping[str, bool]


def rates(observations: Sequence[Observation]) -> dict[str, Rate]:
    """Return each trait's rate."""
    found = {trait: [o.shown[trait] for o in observations if trait in o.shown] for trait in TRAITS}
    return {trait: Rate(sum(shown), len(shown)) for trait, shown in found.items()}


def coherence(observations: Sequence[Observation]) -> float:
    """Return 1 - mean over traits of the largest |rate in a context - rate over all contexts|.

    Sampling noise alone lowers it: with n observations a context, by about 2 * sqrt(p (1 - p) / n) per trait.
    """
    overall = rates(observations)
    contexts = sorted({observation.context for observation in observations})
    within = [rates([o for o in observations if o.context == context]) for context in contexts]
    distances = [max(abs(found[trait].value - overall[trait].value) for found in within) for trait in TRAITS]
    return 1 - sum(distances) / len(distances)
