"""RegMean (Jin et al. 2023, eq. 1): the linear layer that best reproduces what all models' layers put out."""

from collections.abc import Sequence

import torch
from torch import Tensor


def regmean(weights: Sequence[Tensor], grams: Sequence[Tensor], scale: float = 0.9) -> Tensor:
    """Return the minimiser of sum_i |X_i W_i' - X_i W'|^2 for `weights` (O, I) and Gram matrices X'X (I, I).

    `scale` multiplies the off-diagonal entries, which the paper finds necessary (section 4.2; 0.9 is its default). A
    ridge of a millionth of the mean diagonal keeps inputs that never vary from dividing by zero.
    """
    shrunk = [scale * gram + (1 - scale) * torch.diag(gram.diagonal()) for gram in grams]
    ridge = 1e-6 * torch.stack([gram.diagonal().mean() for gram in shrunk]).mean().clamp_min(1e-30)
    eye = ridge * torch.eye(len(shrunk[0]))
    regular = [gram + eye for gram in shrunk]
    right = torch.stack([gram @ weight.T.float() for gram, weight in zip(regular, weights, strict=True)]).sum(0)
    solved: Tensor = torch.linalg.solve(torch.stack(regular).sum(0), right)
    return solved.T.to(weights[0].dtype).contiguous()
