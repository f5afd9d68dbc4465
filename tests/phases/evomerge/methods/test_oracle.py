"""Every method gives mergekit's numbers: bit-equal where the order of operations is the same, else to 1e-7."""

import numpy as np
import pytest
import torch
from torch import Tensor

from phases.evomerge.methods import METHODS, MaskKey, merge

api = pytest.importorskip("mergekit.merge_methods.api")

SHAPES = ((), (1,), (2,), (7,), (1, 5), (13, 17), (300, 400), (3, 5, 7))
WEIGHTS = [0.5, 0.3, 0.2]


def inputs(shape: tuple[int, ...], count: int, seed: int = 0) -> list[Tensor]:
    """Return a base and `count` tensors around it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [base, *(base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count))]


def theirs(method: str, base: Tensor | None, tensors: list[Tensor], **parameters: object) -> Tensor:
    """Return mergekit's result."""
    if "lambda_" in parameters:
        parameters["lambda"] = parameters.pop("lambda_")
    given = tensors if base is None else [base, *tensors]
    return api.merge_tensors(given, method, parameters=parameters, base_index=None if base is None else 0)


def distance(ours: Tensor, reference: Tensor) -> float:
    """Return the distance relative to the length of the reference."""
    return float((ours.double() - reference.double()).norm() / reference.double().norm().clamp(min=1e-30))


EXACT = [
    ("linear", {"weight": WEIGHTS}),
    ("linear", {"weight": [1.0, -0.2, 0.7]}),
    ("linear", {"weight": [0.5, 0.2, 0.7], "normalize": False}),
    ("task_arithmetic", {"weight": WEIGHTS}),
    ("task_arithmetic", {"weight": [1.0, 0.3, 0.2], "normalize": True, "lambda_": 0.7}),
    ("ties", {"weight": WEIGHTS, "density": 0.5}),
    ("ties", {"weight": [0.5, -0.3, 0.9], "density": [0.2, 0.9, 1.0], "normalize": False, "lambda_": 0.5}),
    ("ties", {"weight": WEIGHTS, "density": 0.0}),
    ("breadcrumbs", {"weight": WEIGHTS, "density": 0.6, "gamma": 0.1}),
    ("breadcrumbs", {"weight": WEIGHTS, "density": 0.95, "gamma": 0.2}),
    ("breadcrumbs_ties", {"weight": WEIGHTS, "density": [0.3, 0.6, 1.0], "normalize": True}),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("method", "parameters"), EXACT, ids=lambda value: str(value))
def test_bit_equal(method: str, parameters: dict[str, object], shape: tuple[int, ...]) -> None:
    base, *tensors = inputs(shape, 3)
    reference = theirs(method, None if METHODS[method].base == "unused" else base, tensors, **parameters)
    assert torch.equal(merge(method, tensors, base=base, guard=None, **parameters), reference)
