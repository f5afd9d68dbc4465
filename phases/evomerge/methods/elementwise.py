"""Two inputs, element by element: take over what is near (nearswap), or what matters (Arcee fusion)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_KL_FLOOR = 1e-8  # added to probabilities before their logarithms


def nearswap(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """Return the base where the other tensor is far from it, the other where it is within `t`, and a mix between."""
    share = (t / (base - tensors[0]).abs_().clamp_(min=1e-6)).clamp_(0, 1)
    return share * tensors[0] + (1 - share) * base


def arcee_fusion(tensors: Sequence[Tensor], base: Tensor) -> Tensor:
    """Return the base with those elements of the other tensor whose importance stands out.

    Importance is the size of the change times the Kullback-Leibler divergence between the rows' softmax. What stands
    out lies 1.5 interquartile ranges above the median. Quartiles are exact; mergekit draws a random sample where there
    are more than a million elements.
    """
    delta = tensors[0] - base
    p, q = (torch.softmax(tensor, dim=-1) + _KL_FLOOR for tensor in (tensors[0], base))
    importance = delta.abs() * (p * torch.log(p / q)).sum(dim=-1, keepdim=True)
    values = importance.reshape(-1).numpy()
    places = [int(quarter * (len(values) - 1) / 4) for quarter in (1, 2, 3)]
    low, median, high = np.partition(values, places)[places]
    threshold = float(median + values.dtype.type(1.5) * (high - low))
    return base + delta * (importance >= threshold)
