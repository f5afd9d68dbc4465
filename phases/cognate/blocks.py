"""The transformer block of TinyTitan: RMSNorm, rotary attention, SwiGLU.

A block sees a flat list of tokens and does not know to which rows they belong or what they attend to; that is the
window's concern. So the same block serves whole segments in training and whichever tokens still ponder at inference.

Shapes: N tokens, H heads, K head dimension, D = H * K model width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from phases.cognate.norm import RMSNorm
from phases.cognate.rope import Rotation, rotate


class Block(nn.Module):
    """Pre-norm attention and SwiGLU without biases: 4 D^2 + 3 D hidden + 2 D parameters."""

    def __init__(self, d_model: int, n_heads: int, hidden: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = RMSNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.mlp_norm = RMSNorm(d_model)
        self.gate_up = nn.Linear(d_model, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, d_model, bias=False)

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value (N, H, K) of `x` (N, D), the first two rotated."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3 * self.n_heads, -1))
        qk, v = qkv.split([2 * self.n_heads, self.n_heads], dim=1)
        q, k = rotate(qk, rotation).chunk(2, dim=1)
        return q, k, v

    def mix(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the block's output (N, D) from its input and what it attended to, both (N, D)."""
        x = x + self.out(attended)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        mixed: Tensor = x + self.down(F.silu(gate) * up)
        return mixed
