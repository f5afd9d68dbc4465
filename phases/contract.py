"""What phases hand to one another: references to models, claims that can be measured again, and results.

A `Claim` without a `Probe` cannot be built: whoever states a number also states how to get it again from the files.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class ModelRef(_Frozen):
    """A model directory and the hash of its weights."""

    uri: str = Field(description="model directory, any fsspec URI; relative to the run directory inside a run")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of model.safetensors")
    parameters: int = Field(ge=0)
    format: Literal["tinytitan", "quietstar"] = Field(default="tinytitan", description="quietstar: what thinks alone")


class Baseline(_Frozen):
    """What a claim is compared with, measured in the same run."""

    what: str
    value: float


class Probe(_Frozen):
    """The name of a registered measurement and the arguments that repeat it."""

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class Claim(_Frozen):
    """One measured number and how to measure it again."""

    key: str = Field(pattern=r"^[a-z0-9_]+(/[a-z0-9_.-]+)+$", examples=["cognate/reasoning/bits_per_byte"])
    value: float = Field(allow_inf_nan=False)
    unit: str
    better: Literal["higher", "lower"]
    baseline: Baseline | None = None
    target: float | None = None
    tolerance: float = Field(ge=0, description="absolute; a second measurement further away refutes the claim")
    probe: Probe
    samples: str | None = Field(default=None, description="artifact with the raw measurements")

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


class PhaseResult(_Frozen):
    """What a phase leaves behind; `result.json` in its folder of the run directory."""

    success: bool
    phase: str
    model: ModelRef | None
    metrics: dict[str, float] = Field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    artifacts: dict[str, str] = Field(default_factory=dict, description="name -> path in the run directory")
    models: dict[str, ModelRef] = Field(default_factory=dict, description="further models by role, e.g. `base`")
    config: dict[str, Any] = Field(default_factory=dict)
    degraded: tuple[str, ...] = Field(default=(), description="what is missing and why; empty when all went well")
    notes: tuple[str, ...] = Field(default=(), description="what whoever uses the model has to know, in sentences")
    error: str | None = None
    start_time: datetime
    end_time: datetime
    duration_seconds: float = Field(ge=0)
