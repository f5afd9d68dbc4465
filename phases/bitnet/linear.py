"""Layers whose weights and inputs are quantised as they will be stored, with the gradient passed straight through.

The latent weight stays in fp32 and is what the optimiser moves; every forward pass, in training and in evaluation, uses
the quantised one. So no measurement can be of the latent model by mistake. A weight is quantised once per change of it:
a ponder model uses each many times per step.

Shapes: (..., K) inputs, (..., N) outputs.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from phases.bitnet.activations import ActivationQuantiser
from phases.bitnet.rows import RowTensor
from phases.bitnet.ternary import TernaryTensor
from phases.cognate.norm import RMSNorm

QuantisedTensor = TernaryTensor | RowTensor
WeightQuantiser = Callable[[Tensor], QuantisedTensor]


class LatentWeight:
    """A weight's quantised form, computed again when the weight has changed.

    A fused optimiser changes weights without raising their version, so a backward pass also counts as a change.
    """

    def __init__(self, quantiser: WeightQuantiser) -> None:
        self.quantiser = quantiser
        self._seen: tuple[int, int] | None = None
        self._values = torch.empty(0)

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the quantised values of `weight`, with the gradient of the identity."""
        # A tensor made in inference mode has no version, so nothing tells whether it has changed.
        now = None if weight.is_inference() else (weight.data_ptr(), weight._version)
        if now is None or now != self._seen or self._values.device != weight.device:
            self._values, self._seen = self.quantiser(weight).dequantise(), now
        values: Tensor = _StraightThrough.apply(weight, self)  # type: ignore[no-untyped-call]
        return values

    @property
    def values(self) -> Tensor:
        """The quantised values as they were last computed."""
        return self._values

    def forget(self) -> None:
        """Take the weight as changed."""
        self._seen = None


class BitLinear(nn.Linear):
    """A linear layer of quantised weights and inputs; its bias, if any, stays in fp32 (Ma et al. 2024)."""

    def __init__(self, linear: nn.Linear, quantiser: WeightQuantiser, activations: ActivationQuantiser) -> None:
        """Take over the parameters of `linear`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.activations = activations
        self.latent = LatentWeight(quantiser)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        return F.linear(self.activations(x), self.latent(self.weight), self.bias)

    def quantised(self) -> QuantisedTensor:
        """Return the weight as it is stored."""
        return self.latent.quantiser(self.weight)


class RowEmbedding(nn.Module):
    """An embedding of quantised rows. As a head it is multiplied with, so `values` gives all of it."""

    weight: Tensor

    def __init__(self, layer: nn.Embedding | nn.Linear, quantiser: WeightQuantiser) -> None:
        """Take over the weight (V, D) of an embedding or of a head of its own."""
        nn.Module.__init__(self)
        self.weight = layer.weight
        self.latent = LatentWeight(quantiser)

    def values(self) -> Tensor:
        """Return the quantised matrix (V, D)."""
        return self.latent(self.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ids (...) to rows (..., D)."""
        return F.embedding(tokens, self.values())

    def quantised(self) -> QuantisedTensor:
        """Return the weight as it is stored."""
        return self.latent.quantiser(self.weight)


class QuantisedNorm(RMSNorm):
    """The last norm, with its outputs quantised as the input of a quantised head."""

    def __init__(self, norm: RMSNorm, activations: ActivationQuantiser) -> None:
        """Take over the parameter of `norm`."""
        nn.Module.__init__(self)
        self.weight = norm.weight
        self.activations = activations

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.activations(super().forward(x))


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, latent: LatentWeight) -> Tensor:
        ctx.latent = latent
        return latent.values.view_as(latent.values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.latent.forget()
        return grad, None
