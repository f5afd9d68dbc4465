"""A TinyTitan whose matrices are quantised: the same architecture, names and code, with other layers in place.

Every matrix of a block is ternary; embedding and head are rows of int8 or int4; the long-term memory has int8 matrices
unless told otherwise, for what it retrieves hangs on cosines. Vectors, gates and norms stay in fp32: they are few.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from phases.bitnet.activations import quantiser_for
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.linear import BitLinear, QuantisedNorm, QuantisedTensor, RowEmbedding, WeightQuantiser
from phases.bitnet.rows import Bits, quantise_rows
from phases.bitnet.ternary import ternarise
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.errors import ConfigError, NumericalError

BLOCK_MATRICES = ("qkv", "out", "gate_up", "down")
MEMORY_MATRICES = ("q", "k", "v", "o", "mlp.0", "mlp.2")
Thresholds = Mapping[str, Tensor]  # by name of the matrix, (N or 1, 1), in units of its mean |w|


class BitTitan(TinyTitan):
    """A quantised TinyTitan. Its state has the names and shapes of one, and holds the latent weights."""

    def __init__(self, config: TitanConfig, quantisation: QuantisationConfig, thresholds: Thresholds) -> None:
        super().__init__(config)
        self.quantisation = quantisation
        for name in matrix_names(config):
            linear = self.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            bits = 8 if _is_int8(name, quantisation) else 2
            activations = quantiser_for(quantisation.activations, linear.in_features, bits)
            self.set_submodule(name, BitLinear(linear, _quantiser(name, quantisation, thresholds), activations))
        if quantisation.embedding == "fp32":
            return
        row_bits: Bits = 8 if quantisation.embedding == "int8" else 4
        rows = partial(quantise_rows, bits=row_bits)
        self.norm = QuantisedNorm(self.norm, quantiser_for(quantisation.activations, config.d_model, row_bits))
        self.set_submodule("embedding", RowEmbedding(self.embedding, rows))
        if self.head is not None:
            self.set_submodule("head", RowEmbedding(self.head, rows))

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix (V, D), as it is stored."""
        head: nn.Module = self.head or self.embedding
        return head.values() if isinstance(head, RowEmbedding) else super().head_weight

    def quantised(self) -> dict[str, QuantisedTensor]:
        """Return name -> stored form of each quantised matrix."""
        modules = self.named_modules()
        return {f"{name}.weight": m.quantised() for name, m in modules if isinstance(m, BitLinear | RowEmbedding)}


def to_bitnet(parent: TinyTitan, quantisation: QuantisationConfig, thresholds: Thresholds | None = None) -> BitTitan:
    """Return a quantised copy of `parent`, on its device.

    Raises `NumericalError` naming a weight that is not finite and `ConfigError` where calibrated thresholds are asked
    for and not given.
    """
    if quantisation.calibrated and thresholds is None:
        raise ConfigError.of("calibrated", True, "there are no thresholds", "calibrate first or set it to false")
    for name, tensor in parent.state_dict().items():
        if not tensor.isfinite().all():
            raise NumericalError(f"{name} has values that are not finite; quantise a model that is sound")
    with torch.device("meta"):
        model = BitTitan(parent.config, quantisation, thresholds or {})
    model.load_state_dict({name: tensor.clone() for name, tensor in parent.state_dict().items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.train(parent.training)


def matrix_names(config: TitanConfig) -> list[str]:
    """Return the names of the linear layers that are quantised."""
    blocks = [f"blocks.{i}.{name}" for i in range(config.n_layers) for name in BLOCK_MATRICES]
    return [*blocks, *(f"memory.{name}" for name in MEMORY_MATRICES)]


def _is_int8(name: str, quantisation: QuantisationConfig) -> bool:
    return name.startswith("memory.") and quantisation.memory == "int8"


def _quantiser(name: str, quantisation: QuantisationConfig, thresholds: Thresholds) -> WeightQuantiser:
    if _is_int8(name, quantisation):
        return partial(quantise_rows, bits=8)
    threshold = thresholds.get(f"{name}.weight")
    return partial(ternarise, method=quantisation.method, layout=quantisation.layout, threshold=threshold)
