"""Merges that would be garbage are errors that name tensor, method, value and remedy; inputs are never written to."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from phases.evomerge.errors import MergeError
from phases.evomerge.methods import METHODS, MaskKey, merge

BASE = torch.arange(12, dtype=torch.float32).reshape(3, 4)
NAMED = MaskKey(0, "layers.0.weight")
NEEDED = {"weight": 0.5, "t": 0.1}


def refused(method: str, tensors: list[Tensor], match: str, **arguments: object) -> None:
    """Check that the merge is refused with such a message, after the names of tensor and method."""
    with pytest.raises(MergeError, match=rf"layers\.0\.weight: {method}: .*{match}.*;"):
        merge(method, tensors, key=NAMED, **arguments)


def needed(method: str) -> dict[str, float]:
    """Return values for the parameters without a default."""
    return {each.name: NEEDED[each.name] for each in METHODS[method].parameters if each.default is None}


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(method: str, value: float) -> None:
    count = METHODS[method].most or 3
    tensors = [BASE + i + 1.5 for i in range(count)]
    tensors[-1] = tensors[-1].clone()
    tensors[-1][1, 2] = value
    refused(method, tensors, "not finite", base=None if METHODS[method].base == "unused" else BASE, **needed(method))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_shapes(method: str) -> None:
    count = METHODS[method].most or 2
    base = BASE if METHODS[method].base == "required" else None
    if count == 1 and base is None:
        return
    tensors = [torch.zeros(3, 4)] * (count - 1) + [torch.zeros(4, 3)]
    refused(method, tensors, r"shapes .*\(4, 3\).* differ", base=base, **needed(method))


def test_blow_up_of_cancelling_weights() -> None:
    """mergekit returns deltas of 67,421 here."""
    generator = torch.Generator().manual_seed(0)
    tensors = [BASE + 0.1 * torch.randn(3, 4, generator=generator) for _ in range(2)]
    tensors[1] = BASE - (tensors[0] - BASE) * 0.5
    arguments = {"base": BASE, "weight": [1.0, -0.999999]}
    refused("ties", tensors, "more than 4 times the furthest", **arguments)
    assert (merge("ties", tensors, guard=None, **arguments) - BASE).norm() > 1000


def test_blow_up_of_opposed_deltas() -> None:
    """Model stock divides by nearly 0 where two deltas are nearly opposed: mergekit returns 560 times the delta."""
    delta = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(3, 1)
    tilt = torch.tensor([0.0, 0.05, 0.0, 0.0]).repeat(3, 1)
    refused("model_stock", [BASE + delta + tilt, BASE - delta + tilt], "more than 4 times", base=BASE)


def test_guard_is_in_units_of_the_furthest_input() -> None:
    near, far = BASE + 0.01, BASE + 1.0
    merge("task_arithmetic", [near, far], base=BASE, weight=[1.0, 3.9])
    refused("task_arithmetic", [near, far], "times", base=BASE, weight=[1.0, 4.1])
    merge("task_arithmetic", [near, far], base=BASE, weight=[1.0, 4.1], guard=5.0)


@pytest.mark.parametrize("density", [0.5, 0.05, 0.01])
def test_thinning_is_no_blow_up(density: float) -> None:
    base = torch.zeros(200, 200)
    model = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    merge("dare_linear", [model], base=base, weight=1.0, density=density)


@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "dare_linear", "breadcrumbs", "della_linear", "multislerp"]
)
def test_weights_that_cancel(method: str) -> None:
    arguments = {} if method == "multislerp" else {"normalize": True}
    tensors = [BASE + 1, BASE.flip(0)]
    refused(method, tensors, "cancel|sum to", base=BASE, weight=[0.5, -0.5], **arguments)


def test_opposite_directions() -> None:
    """mergekit returns a tensor of zeros."""
    refused("slerp", [-BASE], "opposite directions", base=BASE, t=0.5)
    refused("nuslerp", [BASE, -BASE], "opposite directions", weight=0.5)
    refused("multislerp", [BASE, -BASE], "directions of the inputs cancel", weight=0.5)
    refused("karcher", [BASE, -BASE], "directions of the inputs cancel")
    refused("karcher", [BASE, BASE, -BASE], "points away from the mean")
    torch.testing.assert_close(merge("slerp", [-BASE], base=BASE, t=0.0), BASE)


def test_scalars_are_averaged() -> None:
    a, b = torch.tensor([0.3]), torch.tensor([-0.1])
    average = torch.tensor([0.1])
    torch.testing.assert_close(merge("slerp", [b], base=a, t=0.5), average)
    torch.testing.assert_close(merge("nuslerp", [a, b], weight=0.5), average)
    torch.testing.assert_close(merge("multislerp", [a, b], weight=0.5), average)
    torch.testing.assert_close(merge("karcher", [a, b]), average)


def test_models_that_left_a_tensor_alone() -> None:
    """Zero deltas have no direction, and need none."""
    for method in ("nuslerp", "multislerp", "model_stock", "sce", "della"):
        parameters = {"weight": 0.5} if "weight" in {each.name for each in METHODS[method].parameters} else {}
        assert torch.equal(merge(method, [BASE.clone(), BASE.clone()], base=BASE, **parameters), BASE), method


def test_parameters() -> None:
    two = [BASE, BASE + 1]
    with pytest.raises(MergeError, match=r"'lineer' is not known; choose one of .*linear"):
        merge("lineer", two, weight=0.5)
    refused("linear", two, "'weight' .* is missing")
    refused("linear", two, "'wieght' is not known", weight=0.5, wieght=1.0)
    refused("linear", two, r"\[1.0, 2.0, 3.0\]: 3 values for 2 inputs", weight=[1.0, 2.0, 3.0])
    refused("linear", two, "weight = 'x': not a float", weight="x")
    refused("linear", two, "nan", weight=float("nan"))
    refused("ties", two, "density = 1.5", base=BASE, weight=0.5, density=1.5)
    refused("ties", two, "needs a base", weight=0.5, density=0.5)
    refused("slerp", two, "2 inputs without the base", base=BASE, t=0.5)
    refused("della", two, "density 0.1 .* epsilon 0.15", base=BASE, weight=0.5, density=0.1)
    refused("linear", [BASE.int(), BASE.int()], "int32", weight=0.5)
    merge("ties", two, base=BASE, weight=0.5, int8_mask=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_half_precision_is_rounded_once(method: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    count = METHODS[method].most or 3
    base, *tensors = (torch.randn(30, 20, generator=generator).to(dtype) for _ in range(count + 1))
    halves = merge(method, tensors, base=base, guard=None, **needed(method))
    wholes = merge(method, [tensor.float() for tensor in tensors], base=base.float(), guard=None, **needed(method))
    assert halves.dtype == dtype
    assert torch.equal(halves, wholes.to(dtype))


def test_overflow_of_half_precision() -> None:
    refused("linear", [torch.full((3,), 6e4).half()], "more than float16 holds", weight=2.0, normalize=False)


def test_mixed_types_promote() -> None:
    assert merge("linear", [BASE.bfloat16(), BASE.double()], weight=0.5).dtype == torch.float64


@pytest.mark.parametrize("method", sorted(METHODS))
def test_inputs_in_read_only_memory(method: str, tmp_path: Path) -> None:
    """Inputs may be views of memory that is not ours to write, in any layout."""
    generator = np.random.default_rng(0)
    arrays = generator.standard_normal((4, 6, 8)).astype(np.float32)
    arrays.tofile(tmp_path / "models")
    mapped = np.memmap(tmp_path / "models", np.float32, "r", shape=(4, 6, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, that writing to such a tensor would crash
        base, *tensors = (torch.from_numpy(mapped[i]) for i in range(4))
    count = METHODS[method].most or 3
    merged = merge(method, tensors[:count], base=base, guard=None, **needed(method))
    across = merge(
        method, [_across(tensor) for tensor in tensors[:count]], base=_across(base), guard=None, **needed(method)
    )
    assert torch.equal(merged, across)
    assert np.array_equal(mapped, arrays)


def _across(tensor: Tensor) -> Tensor:
    """Return the same tensor with another layout in memory."""
    return tensor.clone().T.contiguous().T


@pytest.mark.parametrize("method", sorted(METHODS))
def test_tensors_without_elements(method: str) -> None:
    empty = [torch.empty(0, 4)] * (METHODS[method].most or 2)
    assert merge(method, empty, base=empty[0], **needed(method)).shape == (0, 4)
