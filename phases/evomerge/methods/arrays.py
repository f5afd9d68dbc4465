"""Tensors in and out of the kernels: flat, contiguous NumPy views of the working type.

Methods compute in float32, or in float64 where an input is float64, and round once at the end. Views of inputs are
read-only, so that a kernel that wrote to one would not compile: parents may lie in memory that processes share.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

Flat: TypeAlias = NDArray[Any]  # (elements,), float32 or float64


def working_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return float64 where one of the tensors is float64, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def promoted_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the type that the tensors promote to."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def flat(tensor: Tensor) -> Flat:
    """Return a read-only flat view of a float32 or float64 tensor (a copy only where it is not contiguous)."""
    array: Flat = tensor.detach().reshape(-1).numpy()
    array.flags.writeable = False
    return array


def flats(tensors: Sequence[Tensor]) -> tuple[Flat, ...]:
    """Return `flat` of each."""
    return tuple(flat(tensor) for tensor in tensors)


def scalars(values: Sequence[float], like: Flat) -> tuple[Any, ...]:
    """Return numbers of the type of `like`, so that kernels do not promote to float64."""
    return tuple(like.dtype.type(value) for value in values)


def shaped(array: Flat, like: Tensor) -> Tensor:
    """Return a flat result as a tensor of the shape of `like`."""
    return torch.from_numpy(array).reshape(like.shape)
