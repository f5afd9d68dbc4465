"""Configuration of phase 3: what a thought is, where thoughts begin, and how they learn."""

from typing import Literal, Self

from pydantic import Field, model_validator

from phases.corpus.config import MixConfig
from phases.errors import ConfigError
from phases.settings import Settings
from phases.training.config import AdamWTrainingConfig, TrainingConfig

Injection = Literal["entropy", "attention", "random", "matched", "all"]


class SamplingConfig(Settings):
    """How thoughts are drawn."""

    temperature: float = Field(default=1.0, ge=0, le=10, description="0 takes the likeliest token")
    top_p: float = Field(default=0.9, gt=0, le=1, description="mass of the nucleus")


class ThoughtConfig(Settings):
    """Shape and place of thoughts. With `min_length` below `length`, a thought is the longer the less certain the text.

    The documented length is 32, adaptive from 16 to 64; defaults here are for models that a CPU trains in minutes.
    """

    parallel: int = Field(default=4, ge=1, le=16, description="thoughts at each place in training (documented default)")
    length: int = Field(default=8, ge=1, le=64, description="tokens of the longest thought, markers not counted")
    min_length: int | None = Field(default=None, ge=1, le=64, description="of the shortest; None makes all as long")
    lookahead: int = Field(default=4, ge=1, le=16, description="coming tokens that a thought is judged by")
    injection: Injection = Field(default="entropy", description="what chooses the places")
    share: float = Field(default=0.25, gt=0, le=1, description="of the places of a text that are thought at")
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.min_length is not None and self.min_length > self.length:
            raise ConfigError.of("min_length", self.min_length, "longer than length", f"use at most {self.length}")
        return self


class LearningConfig(Settings):
    """Weights of the losses and the shape of the mixing head."""

    base_weight: float = Field(default=0.5, ge=0, description="of the text's own loss (published default)")
    policy_weight: float = Field(default=1.0, ge=0, description="of REINFORCE; 1 is the gradient of the expected loss")
    positive_only: bool = Field(default=False, description="learn from thoughts that are better than the mean alone")
    kl_weight: float = Field(default=0.0, ge=0, description="of KL(start model || model) on the text, nats per token")
    marker_scale: float = Field(
        default=1.0,
        gt=0,
        description="of the markers' learning rate; published with 100 at a rate of 1e-6, where 10 at 1e-3 wrecks them",
    )
    mixing_hidden: int = Field(default=64, ge=1, description="width of the mixing head")
    initial_weight: float = Field(default=0.1, gt=0, lt=1, description="of thoughts before the head has learned")


class StageConfig(Settings):
    """A stage of the curriculum of Fast-Quiet-STaR: fewer thought tokens than before, in the end none."""

    length: int = Field(ge=0, le=64, description="tokens of a thought; 0 makes ponder steps of them")
    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)


class EvaluationConfig(Settings):
    """How much held-out text the claims are measured on."""

    rows: int = Field(default=16, ge=2, description="pieces of text of the training length")
    resamples: int = Field(default=1000, ge=100, description="of the bootstrap interval")
    examples: int = Field(default=12, ge=1, description="thoughts in the table for people")


class QuietStarConfig(Settings):
    """Phase 3."""

    thought: ThoughtConfig = ThoughtConfig()
    learning: LearningConfig = LearningConfig()
    training: AdamWTrainingConfig = TrainingConfig(
        steps=40, batch_size=4, seq_len=128, learning_rate=5e-4, warmup_steps=5, checkpoint_every=100
    )
    mix: MixConfig = MixConfig(text=0.8, arithmetic=0.1, permutation=0.1)
    curriculum: tuple[StageConfig, ...] = Field(
        default=(), description="stages in place of training.steps; ending with length 0 gives a thought-free model"
    )
    coherence_threshold: float = Field(default=0.5, ge=0, le=1, description="the gate (documented default)")
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _stages_shrink(self) -> Self:
        lengths = [stage.length for stage in self.curriculum]
        if lengths != sorted(lengths, reverse=True) or lengths[:1] == [0]:
            fix = "order the stages by falling length, the first above 0"
            raise ConfigError.of("quietstar.curriculum", lengths, "not a curriculum of shrinking thoughts", fix)
        return self

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The curriculum, or its only stage."""
        training = self.training
        whole = StageConfig(
            length=self.thought.length, steps=max(1, training.steps), learning_rate=training.learning_rate
        )
        return self.curriculum or (whole,)
