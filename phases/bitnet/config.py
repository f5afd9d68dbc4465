"""Configuration of phase 4: what is quantised how, and how the model is trained to bear it."""

from typing import Literal

from pydantic import Field

from phases.bitnet.activations import Name as ActivationName
from phases.bitnet.ternary import Layout, Method
from phases.settings import Settings
from phases.training.config import TrainingConfig

RowFormat = Literal["fp32", "int8", "int4"]
MatrixFormat = Literal["ternary", "int8"]


class QuantisationConfig(Settings):
    """The format of each kind of weight, and of activations."""

    method: Method = Field(default="least_squares", description="of ternary weights: codes and scale")
    layout: Layout = Field(default="row", description="what one ternary scale covers")
    calibrated: bool = Field(default=False, description="thresholds from calibration in place of the method's own")
    activations: ActivationName = Field(
        default="block", description="one scale per block, as the runtime computes, or per token"
    )
    embedding: RowFormat = Field(default="int8", description="of the embedding and the head, in the training loop too")
    memory: MatrixFormat = Field(default="int8", description="of the long-term memory's matrices")


class CalibrationConfig(Settings):
    """How much data thresholds are chosen on."""

    samples: int = Field(default=100, ge=100, le=10_000, description="rows of tokens (documented: 100)")
    seq_len: int = Field(default=128, ge=8, description="tokens per sample")
    batch_size: int = Field(default=20, ge=1, description="samples read at once")


class RecipeConfig(Settings):
    """The run. `first` and `second` share the steps; the second starts at a lower rate and does not decay weights."""

    training: TrainingConfig = Field(
        default=TrainingConfig(
            steps=100, batch_size=8, learning_rate=2e-3, warmup_steps=10, final_learning_rate=0.0, optimizer="muon"
        ),
        description="of both stages together, and of the control; its learning rate is the first's peak",
    )
    second_stage: float = Field(default=0.5, ge=0, le=1, description="share of the steps; 0 has one stage only")
    drop: float = Field(
        default=0.5, gt=0, le=1, description="of the peak, where the first stage ends and the second begins"
    )
    distillation: float = Field(default=0.9, ge=0, le=1, description="share of the teacher in the loss")

    def stages(self, learning_rate: float | None = None) -> tuple[TrainingConfig, ...]:
        """Return the configuration of each stage."""
        whole = self.training.model_copy(update={"learning_rate": learning_rate or self.training.learning_rate})
        second = round(whole.steps * self.second_stage)
        if not second:
            return (whole,)
        peak, ends = whole.learning_rate, {"learning_rate": whole.learning_rate * self.drop, "weight_decay": 0.0}
        first = whole.model_copy(update={"steps": whole.steps - second, "final_learning_rate": self.drop})
        return first.model_copy(update={"learning_rate": peak}), whole.model_copy(update={"steps": second} | ends)


class HeldOutConfig(Settings):
    """How much text quality is measured on."""

    tokens: int = Field(default=16_384, ge=64)
    streams: int = Field(default=16, ge=1)


class BitNetConfig(Settings):
    """Phase 4."""

    quantisation: QuantisationConfig = QuantisationConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    recipe: RecipeConfig = RecipeConfig()
    learning_rates: tuple[float, ...] = Field(default=(2e-3,), min_length=1, description="tried; validation decides")
    control_learning_rates: tuple[float, ...] = Field(
        default=(2.5e-4, 5e-4, 1e-3), min_length=1, description="of the full-precision control, which gets its best"
    )
    held_out: HeldOutConfig = HeldOutConfig()
    most_bits_ratio: float = Field(default=1.05, gt=1, description="target: bits per byte over the control's")
    exact: bool = Field(default=False, description="export with per-token activation scales, exactly BitNet's")
    force_timing: bool = Field(
        default=False, description="time the exported file although others use the machine; such times are marked"
    )
