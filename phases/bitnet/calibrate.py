"""Ternary thresholds from data: how small a weight may be dropped depends on how large its inputs are.

Each sample is a row of tokens that the full-precision model reads. What is kept of it is, for every input column of
every matrix, the mean square: the diagonal of the second moment, by which the error of a dropped weight counts in the
output. Each row of a matrix then takes, of a fixed grid of thresholds, the one with the least weighted error.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from phases.bitnet.ternary import Layout, ternarise
from phases.bitnet.titan import matrix_names
from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError

GRID = tuple(0.3 + 0.05 * step for step in range(15))  # of the mean |w|; 0.5 is absmean's and 0.7 that of TWN


@dataclass(frozen=True)
class Statistics:
    """Mean squares of each matrix's inputs (K,), by name of the matrix, and how many samples they are of."""

    mean_squares: dict[str, Tensor]
    samples: int

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file."""
        return save({**self.mean_squares, "samples": torch.tensor(self.samples)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Statistics":
        """Read `to_bytes` back."""
        tensors = load(data)
        return cls(samples=int(tensors.pop("samples")), mean_squares=tensors)


@torch.no_grad()
def collect(model: TinyTitan, batches: Iterable[Tensor]) -> Statistics:
    """Let a full-precision model read `batches` of rows (B, T) and return the statistics of its matrices' inputs.

    Raises `ConfigError` where there are no rows.
    """
    sums, counts, samples = dict[str, Tensor](), dict[str, int](), 0

    def note(name: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).double()
        sums[name] = sums.get(name, torch.zeros(())) + flat.square().sum(0).cpu()
        counts[name] = counts.get(name, 0) + len(flat)

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            note(name, inputs[0])

        return model.get_submodule(name).register_forward_pre_hook(before)

    hooks = [hook(name) for name in matrix_names(model.config)]
    try:
        for batch in batches:
            model.read(batch.to(model.embedding.weight.device))
            samples += len(batch)
    finally:
        for handle in hooks:
            handle.remove()
    if not samples:
        raise ConfigError.of("calibration.samples", 0, "there is nothing to calibrate on", "give at least one row")
    means = {f"{name}.weight": (sums[name] / counts[name]).float() for name in sums}
    return Statistics(means, samples)


def thresholds(model: TinyTitan, statistics: Statistics, layout: Layout = "row") -> dict[str, Tensor]:
    """Return the threshold of each row (N, 1), or of each matrix (1, 1), in units of its mean |w|.

    A matrix whose inputs were never seen (the memory's, where samples were shorter than a segment) is left out, and so
    keeps the method's own threshold.
    """
    weights = {name: weight for name, weight in model.state_dict().items() if name in statistics.mean_squares}
    return {name: _threshold(w, statistics.mean_squares[name].to(w.device), layout) for name, w in weights.items()}


def _threshold(weight: Tensor, mean_squares: Tensor, layout: Layout) -> Tensor:
    best, error = torch.zeros(()), torch.tensor(torch.inf)
    for share in GRID:
        cut = weight.new_tensor(share).view(1, 1)
        off = ternarise(weight, "least_squares", layout, cut).dequantise().sub_(weight).square_() * mean_squares
        found = off.sum().view(1, 1) if layout == "tensor" else off.sum(1, keepdim=True)
        better = found < error
        best, error = torch.where(better, cut, best), torch.where(better, found, error)
    return best
