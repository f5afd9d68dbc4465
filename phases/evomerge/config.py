"""Configuration of phase 2: what is evolved, how long, and what counts as better."""

from typing import Literal, Self

from pydantic import Field, model_validator

from phases.errors import ConfigError
from phases.evomerge.engine import EvolutionConfig
from phases.settings import Settings

Technique = Literal[
    "linear", "slerp", "ties", "dare", "franken", "dfs", "task_arithmetic", "breadcrumbs", "della", "data_flow"
]
SIX: tuple[Technique, ...] = ("linear", "slerp", "ties", "dare", "franken", "dfs")


class FitnessWeights(Settings):
    """Shares of the scalar fitness; the documented ones."""

    perplexity: float = Field(default=0.4, ge=0)
    accuracy: float = Field(default=0.3, ge=0)
    speed: float = Field(default=0.2, ge=0)
    memory: float = Field(default=0.1, ge=0)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        total = self.perplexity + self.accuracy + self.speed + self.memory
        if abs(total - 1) > 1e-9:
            raise ConfigError.of("evomerge.fitness", total, "shares do not sum to 1", "scale them")
        return self


class FitnessData(Settings):
    """What candidates are measured on: held-out text and fresh task instances of the validation split."""

    text_tokens: int = Field(default=4096, ge=64, description="tokens of text for perplexity")
    streams: int = Field(default=16, ge=1, description="parallel streams that they are cut into")
    task_instances: int = Field(default=16, ge=1, description="instances of each task")


class RaceConfig(Settings):
    """Giving up early on hopeless candidates: they are compared with the best parent on a part of the data first."""

    share: float = Field(default=0.25, gt=0, lt=1, description="of streams and questions that all are measured on")
    limit: float = Field(
        default=1.2, gt=1, description="perplexity over the best parent's from which the rest is saved"
    )


class FinalsConfig(Settings):
    """Measuring the best of a search again before one of them wins."""

    entrants: int = Field(default=4, ge=1, description="kinds of candidates whose best is measured again")
    margin: float = Field(
        default=0.005, ge=0, description="fitness by which a merge has to beat the plain candidates; about its noise"
    )
    data: FitnessData = Field(
        default=FitnessData(text_tokens=16_384, task_instances=64),
        description="of the validation split, behind the text that the search uses, and questions of its own",
    )


class EvoMergeConfig(Settings):
    """Phase 2. The search's own settings are under `evolution`."""

    evolution: EvolutionConfig = EvolutionConfig()
    techniques: tuple[Technique, ...] = Field(
        default=(*SIX, "task_arithmetic"), min_length=1, description="the documented six and plain task arithmetic"
    )
    fitness: FitnessWeights = FitnessWeights()
    data: FitnessData = FitnessData()
    finals: FinalsConfig = FinalsConfig()
    held_out: FitnessData = Field(
        default=FitnessData(text_tokens=16_384, task_instances=32),
        description="what claims are measured on; of the test split, which fitness never sees",
    )
    depth_changes: bool = Field(default=False, description="let franken merges drop and repeat layers")
    race: RaceConfig | None = Field(default=None, description="None measures everyone on everything")
    guard: float = Field(default=4.0, gt=0, description="most that a merge may move, in largest task vectors")
    islands: int = Field(default=1, ge=1, description="independent searches, one Ray Tune trial each")
    workers: int = Field(default=2, ge=1, description="evaluators per island")
    attempts: int = Field(default=8, ge=1, description="tries of one evaluation before the candidate counts as lost")
    timeout: float = Field(default=600.0, gt=0, description="seconds after which an evaluator counts as hung")
    statistics_rows: int = Field(default=4, ge=1, description="rows of text that Fisher and RegMean are measured on")
    checkpoint_every: int = Field(default=10, ge=1, description="generations between published best models")
