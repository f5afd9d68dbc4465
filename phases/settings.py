"""The base of every configuration model: frozen, and unknown keys are errors."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Typed configuration. Fields carry their unit and where their default comes from in `description`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
