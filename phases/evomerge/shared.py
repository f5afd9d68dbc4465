"""Parents as plain arrays, which an object store shares between processes without a copy, and back.

The arrays come back read-only, and so do the tensors made of them: merging never writes to its inputs.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phases.evomerge.candidate import Parents


def to_arrays(parents: Parents) -> dict[str, Any]:
    """Return the tensors as NumPy arrays, under the names of their fields."""

    def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    groups = {name: getattr(parents, name) for name in ("models", "fishers", "grams")}
    per_parent = {name: {parent: arrays(t) for parent, t in group.items()} for name, group in groups.items()}
    return per_parent | {"base": arrays(parents.base), "configs": dict(parents.configs)}


def from_arrays(arrays: Mapping[str, Any]) -> Parents:
    """Return parents that share the memory of `arrays`."""

    def tensors(group: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return {name: torch.from_numpy(array) for name, array in group.items()}

    per_parent = {
        name: {parent: tensors(group) for parent, group in arrays[name].items()}
        for name in ("models", "fishers", "grams")
    }
    return Parents(base=tensors(arrays["base"]), configs=arrays["configs"], **per_parent)
