"""Fisher-weighted averaging (Matena & Raffel 2022, eq. 4): each entry by how much each model's loss depends on it."""

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 1e-30  # an entry that no loss depends on gets the plain weighted mean


def diagonal_fisher(tensors: Sequence[Tensor], fishers: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum w_i F_i theta_i / sum w_i F_i for `tensors` of one shape and diagonals `fishers` of that shape.

    Each model's Fisher information is scaled to a mean of one first, so that a model with a large loss does not win by
    the size of its gradients.
    """
    total, share = torch.zeros_like(tensors[0]), torch.zeros_like(tensors[0])
    for tensor, fisher, weight in zip(tensors, fishers, weights, strict=True):
        scaled = weight * (fisher / fisher.mean().clamp_min(_LEAST) + 1e-6)
        total += scaled * tensor
        share += scaled
    return total / share.clamp_min(_LEAST)
