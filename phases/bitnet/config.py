"""Configuration of phase 4: what is quantised how, and how the model is trained to bear it."""

from typing import Literal

from pydantic import Field

from phases.bitnet.activations import Name as ActivationName
from phases.bitnet.ternary import Layout, Method
from phases.settings import Settings

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
