"""Rotary positions (Su et al. 2021) for any even head dimension."""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, (N, 1, K)


def rotation(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Return the angles of absolute `positions` (N,) for `rotate` (eq. 34)."""
    index = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
    angles = (positions.double().unsqueeze(-1) * theta ** (-index / head_dim)).unsqueeze(1)  # (N, 1, K / 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the halves of the last axis of `x` (N, H, K) against one another."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
