"""Merge methods: pure functions of tensors, and a table of them by name.

`merge(method, tensors, base=..., ...)` checks the inputs, the parameters and the result; the functions do not.
"""

from phases.evomerge.methods.masks import MaskKey
from phases.evomerge.methods.merging import merge
from phases.evomerge.methods.registry import METHODS, MergeMethod, Parameter

__all__ = ["METHODS", "MaskKey", "MergeMethod", "Parameter", "merge"]
