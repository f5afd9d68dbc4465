"""Model stock (Jang et al. 2024, eq. 2): how far to go from the base to the mean of the inputs, by their angles.

Inputs that agree are followed all the way, inputs at right angles not at all: what they do not share counts as noise.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from phases.evomerge.methods.geometry import Rows

_LEAST = 1e-6  # of the product of two lengths, and of the divisor of the share


def model_stock(tensors: Sequence[Tensor], base: Tensor, *, filter_wise: bool = False) -> Tensor:
    """Return `t * mean + (1 - t) * base` with `t = N cos / (1 + (N - 1) cos)`, cos the mean over pairs of deltas.

    `filter_wise`: with a `t` for each vector along the last dimension. Where the deltas oppose each other so that the
    divisor vanishes, the base is kept.
    """
    count = len(tensors)
    rows = Rows(tensors, base, -1 if filter_wise and base.dim() > 1 else None)
    products = rows.products()  # (rows, inputs, inputs)
    norms = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
    first, second = np.triu_indices(count, 1)
    lengths = (norms[:, first] * norms[:, second]).clip(min=_LEAST)
    cosine = (products[:, first, second] / lengths).clip(-1, 1).mean(axis=1)
    divisor = 1 + (count - 1) * cosine
    singular = np.abs(divisor) < _LEAST
    share = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, divisor))
    return rows.sum(np.repeat(share[:, None] / count, count, axis=1))
