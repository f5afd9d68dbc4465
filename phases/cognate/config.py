"""Configuration of phase 1: one architecture, a shared warm-up, and three variants that differ in mix and halting.

`size` is the dial: it names a preset architecture, and `model` changes single fields of it.
"""

from typing import Any

from pydantic import Field, model_validator

from phases.cognate.presets import PRESETS
from phases.cognate.titan import TitanConfig
from phases.corpus.config import MixConfig
from phases.errors import ConfigError
from phases.settings import Settings
from phases.training.config import TrainingConfig


class VariantConfig(Settings):
    """What makes one of the three models its own."""

    name: str = Field(pattern=r"^[a-z][a-z_]*$")
    halt_threshold: float = Field(gt=0, lt=1, description="cumulative halting probability at which a token stops")
    memory_capacity: int = Field(ge=1, description="slots per stream")
    mix: MixConfig = Field(description="share of text and of each task in its training rows")


class EvaluationConfig(Settings):
    """How much held-out data the claims are measured on."""

    text_tokens: int = Field(default=32_768, ge=256, description="tokens of held-out text for bits per byte")
    streams: int = Field(default=16, ge=1, description="parallel streams that they are cut into")
    task_instances: int = Field(default=64, ge=1, description="held-out instances per task")


VARIANTS = (
    VariantConfig(
        name="reasoning",
        halt_threshold=0.95,
        memory_capacity=4096,
        mix=MixConfig(text=0.5, arithmetic=0.2, permutation=0.15, pointer=0.15),
    ),
    VariantConfig(
        name="memory_integration",
        halt_threshold=0.90,
        memory_capacity=8192,
        mix=MixConfig(text=0.6, recall=0.3, tool_call=0.1),
    ),
    VariantConfig(
        name="adaptive_computation",
        halt_threshold=0.99,
        memory_capacity=4096,
        mix=MixConfig(text=0.6, pointer=0.2, permutation=0.2),
    ),
)


class CognateConfig(Settings):
    """Phase 1. Thresholds and the capacity of 8,192 are the documented ones; the mixes are this project's choice."""

    size: str = Field(default="nano", description=f"architecture: one of {', '.join(PRESETS)}")
    model: TitanConfig = Field(default_factory=lambda: PRESETS["nano"], description="changes to the size's fields")
    warm_up: TrainingConfig = Field(default=TrainingConfig(), description="the shared start; kept as the merge base")
    warm_up_mix: MixConfig = MixConfig(
        text=0.75, arithmetic=0.05, permutation=0.05, pointer=0.05, recall=0.05, tool_call=0.05
    )
    training: TrainingConfig = Field(default=TrainingConfig(), description="of each variant")
    variants: tuple[VariantConfig, ...] = Field(default=VARIANTS, min_length=1)
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _size_fills_the_model(cls, values: Any) -> Any:
        size = values.get("size", "nano") if isinstance(values, dict) else "nano"
        if not isinstance(values, dict) or isinstance(values.get("model"), TitanConfig):
            return values
        if size not in PRESETS:
            raise ConfigError.of("cognate.size", size, "no such size", f"choose one of {', '.join(PRESETS)}")
        return values | {"model": _over(PRESETS[size].model_dump(), values.get("model") or {})}

    @model_validator(mode="after")
    def _names_are_unique(self) -> "CognateConfig":
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names) or "warm_up" in names:
            raise ConfigError.of("cognate.variants", names, "names must differ", "rename one; warm_up is taken")
        return self


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = base | changes
    nested = {k: _over(base[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return merged | nested
