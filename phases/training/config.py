"""Configuration of a training run."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from phases.errors import ConfigError
from phases.settings import Settings

Precision = Literal["fp32", "bf16"]


class TrainingConfig(Settings):
    """Steps, batch and optimiser. Betas and weight decay are those of GPT-3 (Brown et al. 2020, appendix B)."""

    steps: int = Field(default=200, ge=0, description="optimiser steps")
    batch_size: int = Field(default=16, ge=1, description="rows per forward pass")
    accumulate: int = Field(default=1, ge=1, description="forward passes per optimiser step")
    seq_len: int = Field(default=256, ge=8, description="tokens per row")
    learning_rate: float = Field(default=3e-3, gt=0, description="peak")
    final_learning_rate: float = Field(default=0.05, ge=0, le=1, description="share of the peak after the cosine")
    warmup_steps: int = Field(default=20, ge=0, description="linear warm-up")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon (Jordan 2024) moves the model's hidden matrices, AdamW all else"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="of AdamW")
    weight_decay: float = Field(default=0.1, ge=0, description="on matrices only")
    grad_clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto takes bf16 autocast where the processor has units for it"
    )
    checkpoint_every: int = Field(default=50, ge=1, description="steps between checkpoints")
    checkpoints_kept: int = Field(default=2, ge=1, description="newest good checkpoints of a training run that stay")
    checkpoint_hours: float | None = Field(
        default=None, gt=0, description="but only the newest for longer than this; None for no limit"
    )
    threads: int = Field(default=1, ge=1, description="of torch, per agent; another number gives other bytes")


def _without_muon(config: TrainingConfig) -> TrainingConfig:
    if config.optimizer == "muon":
        raise ConfigError.of("optimizer", "muon", "what is trained here has no hidden matrices of its own", "use adamw")
    return config


AdamWTrainingConfig = Annotated[TrainingConfig, AfterValidator(_without_muon)]  # where Muon has not been tried
