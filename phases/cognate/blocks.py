"""The transformer block of TinyTitan: RMSNorm, rotary attention over a cache, SwiGLU.

Shapes: B rows, A queries, W keys, H heads, K head dimension, D = H * K model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm attention and SwiGLU without biases: 4 D^2 + 3 D hidden + 2 D parameters."""

    def __init__(self, d_model: int, n_heads: int, hidden: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.RMSNorm(d_model)
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.mlp_norm = nn.RMSNorm(d_model)
        self.gate, self.up = (nn.Linear(d_model, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, d_model, bias=False)

    def project(self, x: Tensor, rotation: "Rotation") -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value (B, H, A, K) of `x` (B, A, D), the first two rotated."""
        h = self.attention_norm(x)
        q, k, v = (self._heads(linear(h)) for linear in (self.query, self.key, self.value))
        return rotate(q, rotation), rotate(k, rotation), v

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return the block's output for `x` (B, A, D), attending from `q` (B, H, A, K) to `k`, `v` (B, H, W, K).

        `mask` is true where attention is allowed, broadcastable to (B, H, A, W); None allows all.
        """
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        h = self.mlp_norm(x)
        mixed: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)
        return heads


Rotation = tuple[Tensor, Tensor]  # cosines and sines, (1 or B, 1, A, K / 2)


def rotation(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Return the rotary angles of absolute `positions` (B or 1, A), for any even K (Su et al. 2021, eq. 34)."""
    index = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
    angles = (positions.double().unsqueeze(-1) * theta ** (-index / head_dim)).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the halves of the last axis of `x` (B, H, A, K) against one another."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
