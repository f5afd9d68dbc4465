"""Seeds by name: every random draw in a run comes from the run's seed and the name of its purpose.

A child depends on nothing but (seed, names), so the order in which the parts of a run ask for theirs does not matter.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def child_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the purpose that `names` describe, derived by `numpy.random.SeedSequence`."""
    key = [int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:4], "big") for name in names]
    high, low = np.random.SeedSequence(seed, spawn_key=key).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for the purpose that `names` describe."""
    return np.random.default_rng(child_seed(seed, *names))


def torch_rng(seed: int, *names: str | int, device: str = "cpu") -> "torch.Generator":
    """Return a torch generator on `device` for the purpose that `names` describe."""
    import torch  # here, since importing it takes over a second, which processes without tensors can save

    return torch.Generator(device=device).manual_seed(child_seed(seed, *names))
