"""Low-rank adapters (Hu et al. 2021) on the matrices of a TinyTitan's blocks, with a dial: W + s * (alpha / r) * BA.

At strength 0 a model is its own teacher, so no second copy is held; at 1 it is what was trained; between and beyond,
the trained behaviour grows with s. Merging gives plain weights of the old names and shapes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from phases.cognate.titan import TinyTitan
from phases.errors import ArtifactError
from phases.settings import Settings


class LoRAConfig(Settings):
    """Where adapters go and how large they are."""

    rank: int = Field(
        default=2,
        ge=1,
        description="small, for the values seen in baking are not to be learned: of rank 16 on all matrices, unseen "
        "values were stated 6 to 12 points less often than by the prompted model, of rank 2 on attention 0 to 4 "
        "(`forge bench baking`)",
    )
    alpha: float = Field(default=2.0, gt=0, description="scale times rank")
    targets: tuple[str, ...] = Field(
        default=("qkv", "out"), min_length=1, description="of a block; gate_up and down are its others"
    )


class LoRALinear(nn.Module):
    """A frozen linear layer and its adapter. It starts as the layer itself, for B is zero."""

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like, deviation = base.weight, base.in_features**-0.5
        noise = torch.randn(config.rank, base.in_features, generator=generator)
        self.a = nn.Parameter((noise * deviation).to(like))
        self.b = nn.Parameter(like.new_zeros(base.out_features, config.rank))
        self.scale, self.strength = config.alpha / config.rank, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        y: Tensor = self.base(x)
        if self.strength == 0:
            return y
        return y + (x @ self.a.T) @ self.b.T * (self.scale * self.strength)

    def merged(self, strength: float) -> Tensor:
        """Return the layer's matrix (N, K) with the adapter in it."""
        return self.base.weight + strength * self.scale * (self.b @ self.a)


class Adapted(nn.Module):
    """A frozen TinyTitan with adapters. `model` is the TinyTitan itself, whose layers are replaced in place.

    Only adapters are parameters and state of this module, so an optimiser and a checkpoint hold nothing else.
    """

    def __init__(self, model: TinyTitan, config: LoRAConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        model.requires_grad_(False)
        for block in model.blocks:
            for name in config.targets:
                layer = getattr(block, name)
                assert isinstance(layer, nn.Linear)
                block.set_submodule(name, LoRALinear(layer, config, generator))
        self._model = [model]  # in a list, so that it is no submodule
        self.adapters = nn.ParameterDict()
        for name, layer in self._layers():
            key = name.replace(".", "_")
            self.adapters[f"{key}_a"], self.adapters[f"{key}_b"] = layer.a, layer.b

    @property
    def model(self) -> TinyTitan:
        """The TinyTitan with adapters in it."""
        return self._model[0]

    @contextmanager
    def at(self, strength: float) -> Iterator[TinyTitan]:
        """Set the dial for a while; 0 is the model as it was."""
        layers = [layer for _, layer in self._layers()]
        before = [layer.strength for layer in layers]
        for layer in layers:
            layer.strength = strength
        try:
            yield self.model
        finally:
            for layer, value in zip(layers, before, strict=True):
                layer.strength = value

    @torch.no_grad()
    def merged(self, strength: float = 1.0) -> dict[str, Tensor]:
        """Return the state of a plain TinyTitan: W + strength * BA. Raises `ArtifactError` where it is not finite."""
        layers = dict(self._layers())
        state = dict[str, Tensor]()
        for name, tensor in self.model.state_dict().items():
            owner, _, leaf = name.rpartition(".")
            if owner in layers:
                continue  # an adapter's own
            layer = layers.get(owner.removesuffix(".base"))
            plain = name.replace(".base.", ".") if layer else name
            state[plain] = layer.merged(strength) if layer is not None and leaf == "weight" else tensor.clone()
        for name, tensor in state.items():
            if not tensor.isfinite().all():
                raise ArtifactError(f"{name}: not finite at the strength {strength}; use a smaller one")
        return state

    def plain(self, strength: float = 1.0) -> TinyTitan:
        """Return a TinyTitan of its own with the adapters merged, in evaluation mode."""
        made = TinyTitan(self.model.config).to(self.model.embedding.weight.device)
        made.load_state_dict(self.merged(strength))
        return made.eval()

    def _layers(self) -> Iterator[tuple[str, LoRALinear]]:
        for name, module in self.model.named_modules():
            if isinstance(module, LoRALinear):
                yield name, module
