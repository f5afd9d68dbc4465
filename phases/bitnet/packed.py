"""A quantised model as every exporter reads it: what it is, its matrices as stored, and its vectors.

Names are those of TinyTitan (`blocks.0.qkv.weight`); other decoders are renamed to them when they are read. A matrix
may also be plain fp32: then an exporter writes the full-precision model, which is the baseline of all ratios.

Shapes: D model width, H query heads, G key and value heads, K head dimension, V vocabulary.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from phases.bitnet.activations import Name as ActivationName
from phases.bitnet.linear import QuantisedTensor
from phases.bitnet.rows import RowTensor
from phases.bitnet.ternary import TernaryTensor
from phases.bitnet.titan import BitTitan, matrix_names
from phases.cognate.norm import EPS
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.errors import ArtifactError
from phases.settings import Settings

Matrix = QuantisedTensor | Tensor


class Architecture(Settings):
    """A pre-norm decoder of rotary attention and SwiGLU. `titan` is there where it ponders and remembers."""

    vocab_size: int = Field(ge=1)
    d_model: int = Field(ge=1)
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    n_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    hidden: int = Field(ge=1)
    eps: float = Field(gt=0)
    rope_theta: float = Field(gt=0)
    tied: bool
    activations: ActivationName = Field(description="quantiser of what goes into a quantised matrix")
    quantised_head: bool = Field(description="whether the last norm's outputs are quantised as the head's input")
    titan: TitanConfig | None = None

    @property
    def steps(self) -> int:
        """Most passes through the stack per token."""
        return self.titan.train_ponder_steps if self.titan else 1


@dataclass(frozen=True)
class PackedModel:
    """All that a quantised model is."""

    architecture: Architecture
    matrices: dict[str, Matrix]  # embedding, blocks, memory, and the head where it is not the embedding
    vectors: dict[str, Tensor]  # fp32: norms, biases, gates, convolutions

    @property
    def head(self) -> Matrix:
        """The head's matrix."""
        return self.matrices["embedding.weight" if self.architecture.tied else "head.weight"]

    @property
    def parameters(self) -> int:
        """Count the weights, whatever their format."""
        return sum(values(m).numel() for m in self.matrices.values()) + sum(v.numel() for v in self.vectors.values())

    def zero_shares(self) -> dict[str, float]:
        """Return the share of zeros in each ternary matrix: of Gaussian weights 0.31; near 0 or 1 something broke."""
        return {name: m.zeros for name, m in self.matrices.items() if isinstance(m, TernaryTensor)}


def values(matrix: Matrix) -> Tensor:
    """Return the stored codes of a quantised matrix and the weights of a plain one."""
    return matrix if isinstance(matrix, Tensor) else matrix.codes


def pack(model: TinyTitan) -> PackedModel:
    """Return a model as it is stored; one that is not quantised in full precision.

    Raises `ArtifactError` where a weight is not finite.
    """
    config = model.config
    quantised = model.quantised() if isinstance(model, BitTitan) else {}
    names = {f"{name}.weight" for name in matrix_names(config)} | {"embedding.weight", "head.weight"}
    matrices, vectors = dict[str, Matrix](), dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ArtifactError(f"{name} has values that are not finite; start from a model that is sound")
        if name in names:
            matrices[name] = _to_cpu(quantised.get(name, tensor))
        else:
            vectors[name] = tensor.detach().float().cpu()
    architecture = Architecture(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_heads,
        head_dim=config.d_model // config.n_heads,
        hidden=config.hidden,
        eps=EPS,
        rope_theta=config.rope_theta,
        tied=config.tied,
        activations=model.quantisation.activations if isinstance(model, BitTitan) else "block",
        quantised_head="embedding.weight" in quantised,
        titan=config,
    )
    return PackedModel(architecture, matrices, vectors)


def _to_cpu(matrix: Matrix) -> Matrix:
    match matrix:
        case TernaryTensor(codes, scale, layout):
            return TernaryTensor(codes.cpu(), scale.cpu(), layout)
        case RowTensor(codes, scale, bits):
            return RowTensor(codes.cpu(), scale.cpu(), bits)
    return matrix.detach().to("cpu", torch.float32)
