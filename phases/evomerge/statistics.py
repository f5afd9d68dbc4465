"""What data-driven merges know of a parent: the diagonal Fisher information and the inputs of its linear layers.

The Fisher information (Matena & Raffel 2022) is the mean square of the gradient of one row's loss, with the targets
that are there rather than sampled ones (the empirical Fisher). The Gram matrices X^T X of the inputs are what RegMean
(Jin et al. 2023) needs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from phases.cognate.titan import TinyTitan


def diagonal_fisher_of(model: TinyTitan, rows: Tensor) -> dict[str, Tensor]:
    """Return the mean squared gradient of each parameter over `rows` (R, T + 1), one row at a time."""
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for row in rows.split(1):
        model.zero_grad()
        model.loss(row)[0].backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad.square() / len(rows)
    model.zero_grad()
    return total


@torch.no_grad()
def gram_matrices(model: TinyTitan, rows: Tensor) -> dict[str, Tensor]:
    """Return X^T X (I, I) of the inputs X (N, I) that each linear layer sees over `rows`, by the weight's name."""
    grams = dict[str, Tensor]()

    def watch(name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            grams[name] = grams.get(name, 0) + x.T @ x

        return add

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(watch(f"{name}.weight")) for name, module in layers]
    try:
        model.loss(rows)
    finally:
        for hook in hooks:
            hook.remove()
    return grams
