"""All that a training run is between two steps, as files: safetensors and JSON, never pickle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from phases.errors import ArtifactError
from phases.training.config import Precision

TENSORS, META = "state.safetensors", "state.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


@dataclass(frozen=True)
class TrainState:
    """`step` steps are done. Tensors: `model.*`, the optimisers' moments by parameter name, and the generator's state.

    The data position needs no field: batches are a function of the step.
    """

    step: int
    precision: Precision
    tensors: dict[str, Tensor]

    @classmethod
    def capture(
        cls, step: int, precision: Precision, model: nn.Module, optimizers: Sequence[Optimizer]
    ) -> "TrainState":
        """Copy the state of a model and its optimisers."""
        tensors = {f"model.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
        owners = _owners(optimizers)
        for name, parameter in model.named_parameters():
            for moment, value in owners[parameter].state.get(parameter, {}).items():
                tensors[f"{moment}.{name}"] = value.detach().clone()
        tensors["generator"] = torch.get_rng_state()
        return cls(step, precision, tensors)

    def restore(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Put the state back. Raises `ArtifactError` where it is of another model."""
        weights = {k.removeprefix("model."): v for k, v in self.tensors.items() if k.startswith("model.")}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ArtifactError(f"checkpoint of step {self.step} is of another model: {error}") from error
        owners = _owners(optimizers)
        for name, parameter in model.named_parameters():
            found = {moment: self.tensors.get(f"{moment}.{name}") for moment in _MOMENTS}
            if moments := {moment: value.clone() for moment, value in found.items() if value is not None}:
                owners[parameter].state[parameter] = moments
        torch.set_rng_state(self.tensors["generator"])

    def to_files(self) -> dict[str, bytes]:
        """Return the state as file name -> content."""
        meta = {"step": self.step, "precision": self.precision}
        return {TENSORS: save({k: v.contiguous() for k, v in self.tensors.items()}), META: json.dumps(meta).encode()}

    @classmethod
    def from_files(cls, files: dict[str, bytes]) -> "TrainState":
        """Read `to_files` back. Raises `ArtifactError` where a file is missing or damaged."""
        try:
            meta = json.loads(files[META])
            return cls(int(meta["step"]), meta["precision"], load(files[TENSORS]))
        except (KeyError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"checkpoint: missing or damaged part ({error})") from error


def _owners(optimizers: Sequence[Optimizer]) -> dict[Tensor, Optimizer]:
    """Return which optimiser moves each parameter."""
    return {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
