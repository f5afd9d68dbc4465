"""The configuration of a run: one typed model per phase, composed, and checked before anything starts.

A preset is a YAML file in `configs/`; `--config FILE` adds another on top, and `--set a.b=c` has the last word. The
result is written to the run directory fully resolved, so that a run does not depend on later defaults.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from coordinators.alerts import AlertSettings
from coordinators.schedule import SchedulingSettings
from phases import rundir
from phases.baking.config import BakingConfig
from phases.bitnet.config import BitNetConfig
from phases.cognate.config import CognateConfig
from phases.corpus.config import CorpusConfig
from phases.errors import ConfigError
from phases.evomerge.config import EvoMergeConfig
from phases.quietstar.config import QuietStarConfig
from phases.settings import Settings
from recovery.strategies import RecoverySettings
from recovery.supervision import SupervisionSettings

MAKE_THEIR_MODELS = ("cognate", "evomerge")  # the phases that start from no model
OPTIONAL = ("baking",)  # phases that run only where they are asked for
PRESETS = Path(__file__).resolve().parent.parent / "configs"


class RaySettings(Settings):
    """How a run uses Ray."""

    address: str | None = Field(default=None, description="an existing cluster; None starts one on this machine")
    dashboard: bool = Field(default=True, description="start Ray's dashboard (a few seconds and about 0.5 GB)")
    object_store_mb: int = Field(default=512, ge=80, description="MiB of shared memory on this machine")
    cpus_per_trainer: float = Field(default=1, gt=0, description="CPUs that each training agent reserves")
    gpus_per_trainer: float = Field(default=0, ge=0, description="GPUs that each training agent reserves")


class TrackingSettings(Settings):
    """Weights & Biases. Nothing leaves the machine in the modes `offline` and `disabled`."""

    wandb_mode: Literal["offline", "online", "disabled"] = Field(
        default="offline", description="the environment variable WANDB_MODE has precedence"
    )
    project: str = "agent-forge"


class PipelineConfig(Settings):
    """Everything that decides what a run computes."""

    name: str = Field(description="the preset's name")
    seed: int = Field(default=0, ge=0, description="every random draw of the run derives from it")
    phases: tuple[str, ...] = Field(
        default=tuple(phase for phase in rundir.PHASES if phase not in OPTIONAL),
        min_length=1,
        description="the phases to run, in order; baking only where it is named",
    )
    model: str | None = Field(default=None, description="model directory that the first phase starts from")
    corpus: CorpusConfig = CorpusConfig()
    cognate: CognateConfig = CognateConfig()
    evomerge: EvoMergeConfig = EvoMergeConfig()
    quietstar: QuietStarConfig = QuietStarConfig()
    bitnet: BitNetConfig = BitNetConfig()
    baking: BakingConfig = BakingConfig()
    recovery: RecoverySettings = RecoverySettings()
    supervision: SupervisionSettings = SupervisionSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    ray: RaySettings = RaySettings()
    tracking: TrackingSettings = TrackingSettings()
    alerts: AlertSettings = AlertSettings()

    @field_validator("phases")
    @classmethod
    def _known_and_ordered(cls, phases: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [phase for phase in phases if phase not in rundir.PHASES]:
            raise ValueError(f"unknown phases {unknown}; known are {', '.join(rundir.PHASES)}")
        if list(phases) != sorted(set(phases), key=rundir.PHASES.index):
            raise ValueError(f"must be in the order {', '.join(rundir.PHASES)}, each once")
        return phases

    @model_validator(mode="after")
    def _models_to_work_on(self) -> Self:
        makes = [phase for phase in self.phases if phase in MAKE_THEIR_MODELS]
        if self.model is None and "cognate" not in self.phases:
            fix = "begin with it, or name a model to start from: forge phase NAME --model DIR"
            raise ConfigError.of("phases", list(self.phases), "the other phases work on the models of cognate", fix)
        if self.model is not None and makes:
            fix = "leave the model out; `forge merge` merges models of your own"
            raise ConfigError.of("model", self.model, f"{makes[0]} starts from a corpus and the models made of it", fix)
        return self

    @model_validator(mode="after")
    def _thoughts_fit(self) -> Self:
        thought, most = self.quietstar.thought, self.cognate.model.segment_len
        if {"cognate", "quietstar"} <= set(self.phases) and thought.length + thought.lookahead >= most:
            fix = f"use at most {most - thought.lookahead - 1}"
            what = "thoughts do not fit into a segment of the model"
            raise ConfigError.of("quietstar.thought.length", thought.length, what, fix)
        return self


def preset_names() -> list[str]:
    """Return the names of the presets in `configs/`."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load_config(preset: str, file: Path | None = None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Compose preset, file and `a.b=c` overrides. Raises `ConfigError` naming field, value and fix."""
    if preset not in preset_names():
        hint = get_close_matches(preset, preset_names(), n=1)
        fix = f"did you mean {hint[0]}?" if hint else f"choose one of {', '.join(preset_names())}"
        raise ConfigError.of("preset", preset, "no such preset", fix)
    values = {"name": preset} | _read_yaml(PRESETS / f"{preset}.yaml")
    if file is not None:
        values = _merge(values, _read_yaml(file))
    for override in overrides:
        values = _merge(values, _parse_override(override))
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> PipelineConfig:
    """Validate a configuration that is already composed, e.g. a run's `config.yaml`."""
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from error


def dump_config(config: PipelineConfig) -> str:
    """Return the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError.of("config", str(file), "cannot be read", f"name a readable YAML file ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError.of("config", str(file), "not valid YAML", str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError.of("config", str(file), "not a mapping", "write `field: value` lines")
    return values


def _parse_override(text: str) -> dict[str, Any]:
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise ConfigError.of("--set", text, "not of the form a.b=c", "write e.g. --set cognate.training.steps=100")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError.of("--set", text, "the value is not YAML", f"quote it ({error})") from error
    for key in reversed(path.split(".")):
        nested = {key: nested}
    return dict(nested)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(item: Any) -> str:
    field = ".".join(str(part) for part in item["loc"]) or "config"
    if item["type"] == "extra_forbidden":
        return str(ConfigError.of(field, item["input"], "unknown key", _nearest_key(item["loc"])))
    if isinstance(error := item.get("ctx", {}).get("error"), ConfigError):
        return str(error)
    return f"{field} = {item['input']!r}: {item['msg']}"


def _nearest_key(location: tuple[int | str, ...]) -> str:
    model: Any = PipelineConfig
    for part in location[:-1]:
        field = model.model_fields.get(part)
        model = field.annotation if field is not None else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return "remove it"
    known = list(model.model_fields)
    hint = get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {hint[0]}?" if hint else f"known are {', '.join(known)}"
