"""Matrices of {-1, 0, 1} with a scale: how they are found, and the one type that every exporter reads.

Codes and scale are stored and never derived again: the mean of |scale * codes| is not the scale, so a model that is
quantised anew on every load shrinks each time. `scale` multiplies, always. It is rounded to fp16 here, where it is
made, so that every format holds exactly the number that training saw. (A scale below 2^-24 thereby becomes 0.)

Shapes: N outputs (rows), K inputs (columns).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from phases.errors import ConfigError, NumericalError

Layout = Literal["tensor", "row"]
Method = Literal["absmean", "least_squares", "twn"]
TWN_FACTOR = 0.7  # of the mean |w| (Li et al. 2016, eq. 6)
_LARGEST_SCALE = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class TernaryTensor:
    """A matrix `scale * codes`. `layout` says what one scale covers."""

    codes: Tensor  # (N, K), int8 of -1, 0, 1
    scale: Tensor  # (1, 1) for the layout `tensor`, (N, 1) for `row`; fp32 that fp16 can hold
    layout: Layout
    bits: ClassVar = 2  # of a stored code

    def __post_init__(self) -> None:
        rows = 1 if self.layout == "tensor" else len(self.codes)
        if self.codes.dtype != torch.int8 or tuple(self.scale.shape) != (rows, 1):
            found = f"{self.codes.dtype}, {tuple(self.scale.shape)}"
            raise ConfigError.of("ternary tensor", found, "not int8 codes with a scale of its layout", f"give {rows}x1")
        if self.codes.numel() and int(self.codes.abs().max()) > 1:
            raise ConfigError.of("codes", int(self.codes.abs().max()), "not ternary", "use -1, 0 and 1")

    def dequantise(self) -> Tensor:
        """Return the matrix in fp32."""
        return self.codes * self.scale

    @property
    def row_scale(self) -> Tensor:
        """The scale of each row, (N, 1), whatever the layout."""
        return self.scale.expand(len(self.codes), 1)

    @property
    def zeros(self) -> float:
        """The share of codes that are 0."""
        return float((self.codes == 0).double().mean())


def ternarise(
    weight: Tensor, method: Method = "least_squares", layout: Layout = "row", threshold: Tensor | None = None
) -> TernaryTensor:
    """Quantise a matrix (N, K).

    `absmean` cuts at half the mean of |w| and scales by that mean (Ma et al. 2024, eq. 1-3). `least_squares` has the
    same codes and the scale <w, t> / <t, t> that is nearest in squares. `twn` cuts at 0.7 of the mean and scales by the
    mean of |w| above (Li et al. 2016), which is the least-squares scale of its own codes. `threshold` (N or 1, 1), in
    units of the mean |w|, replaces the method's cut; calibration finds it.

    A matrix that is ternary already keeps its values. A row of zeros has codes and scale 0. Raises `NumericalError` for
    weights that are not finite or too large for an fp16 scale, and `ConfigError` for anything but a matrix.
    """
    if weight.dim() != 2 or not weight.numel():
        raise ConfigError.of("weight", tuple(weight.shape), "not a matrix", "quantise matrices only")
    w = weight.detach().float()
    mean = _mean(w.abs(), layout)
    if not torch.isfinite(mean).all():
        raise NumericalError("weights to quantise are not all finite; roll back to a checkpoint that is sound")
    cut = mean * (_default_threshold(method) if threshold is None else threshold.to(mean))
    codes = torch.where(w.abs() >= cut, w.sign(), 0.0)
    if method == "absmean":
        largest = w.abs().amax() if layout == "tensor" else w.abs().amax(1, keepdim=True)
        is_ternary = _every((w == 0) | (w.abs() == largest), layout)
        scale = torch.where(is_ternary, largest, mean)
    else:
        # <t, t> counts the codes that are not 0.
        scale = _mean(w * codes, layout) / _mean(codes.abs(), layout).clamp_min(1 / w.numel())
    if float(scale.max()) > _LARGEST_SCALE:
        raise NumericalError(f"a ternary scale of {float(scale.max()):.3g} is beyond fp16; scale the weights down")
    scale = scale.half().float()
    return TernaryTensor((codes * (scale > 0)).to(torch.int8), scale, layout)


def _default_threshold(method: Method) -> float:
    return TWN_FACTOR if method == "twn" else 0.5


def _mean(x: Tensor, layout: Layout) -> Tensor:
    return x.mean().view(1, 1) if layout == "tensor" else x.mean(1, keepdim=True)


def _every(x: Tensor, layout: Layout) -> Tensor:
    return x.all().view(1, 1) if layout == "tensor" else x.all(1, keepdim=True)
