"""What must hold of merge methods whatever the tensors are."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phases.evomerge.methods import METHODS, MaskKey, merge

PARAMETERS: dict[str, dict[str, object]] = {
    "linear": {"weight": 1.0},
    "slerp": {"t": 0.3},
    "nuslerp": {"weight": [0.4, 0.6]},
    "multislerp": {"weight": 1.0},
    "karcher": {},
    "task_arithmetic": {"weight": 0.3},
    "ties": {"weight": 1.0, "density": 0.6},
    "dare_ties": {"weight": 0.3, "density": 0.6},
    "dare_linear": {"weight": 0.3, "density": 0.6},
    "breadcrumbs": {"weight": 0.3, "density": 0.6, "gamma": 0.1},
    "breadcrumbs_ties": {"weight": 0.3, "density": 0.6, "gamma": 0.1},
    "della": {"weight": 0.3, "density": 0.6},
    "della_linear": {"weight": 0.3, "density": 0.6},
    "model_stock": {},
    "sce": {"select_topk": 0.6},
    "arcee_fusion": {},
    "nearswap": {"t": 0.1},
    "ram": {},
    "ramplus_tl": {},
    "passthrough": {},
}
SYMMETRIC = [
    "linear",
    "multislerp",
    "karcher",
    "task_arithmetic",
    "ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "model_stock",
]
SYMMETRIC += ["sce", "ram", "ramplus_tl"]
HOMOGENEOUS = ["linear", "slerp", "nuslerp", "task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs"]
HOMOGENEOUS += ["breadcrumbs_ties", "della", "della_linear", "passthrough"]


@st.composite
def models(draw: st.DrawFn, count: int = 3, spread: float = 0.1) -> tuple[Tensor, list[Tensor]]:
    """A base and models around it, of a small random shape."""
    shape = draw(st.sampled_from([(1,), (6,), (3, 4), (17, 9), (2, 3, 4)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    base = torch.randn(shape, generator=generator)
    return base, [base + spread * torch.randn(shape, generator=generator) for _ in range(count)]


def apply(method: str, base: Tensor, tensors: Sequence[Tensor], **parameters: object) -> Tensor:
    """Merge as many of the tensors as the method takes."""
    given = tensors[: METHODS[method].most or len(tensors)]
    return merge(method, given, base=base, key=MaskKey(1, "w"), guard=None, **(PARAMETERS[method] | parameters))


def test_every_method_is_tested() -> None:
    assert set(PARAMETERS) == set(METHODS)


@pytest.mark.parametrize("method", sorted(METHODS))
@settings(max_examples=15, deadline=None)
@given(models())
def test_identity(method: str, drawn: tuple[Tensor, list[Tensor]]) -> None:
    """Models that are all the same are merged to that model."""
    base, _ = drawn
    torch.testing.assert_close(apply(method, base, [base.clone() for _ in range(3)]), base, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "method", ["task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs", "della", "sce"]
)
@settings(max_examples=10, deadline=None)
@given(models())
def test_one_whole_model(method: str, drawn: tuple[Tensor, list[Tensor]]) -> None:
    """The whole delta of one model with weight 1 leads to that model."""
    base, (model, *_) = drawn
    whole = {"select_topk": 1.0} if method == "sce" else {"weight": 1.0}
    whole |= {"density": 1.0} if "density" in PARAMETERS[method] else {}
    torch.testing.assert_close(apply(method, base, [model], **whole), model)


@pytest.mark.parametrize("method", SYMMETRIC)
@settings(max_examples=15, deadline=None)
@given(models(), st.permutations(range(3)))
def test_order_of_models_does_not_matter(method: str, drawn: tuple[Tensor, list[Tensor]], order: Sequence[int]) -> None:
    base, tensors = drawn
    weights = {"weight": [0.5, 0.2, 0.4]} if "weight" in PARAMETERS[method] else {}
    permuted = {name: [values[i] for i in order] for name, values in weights.items()}
    merged = apply(method, base, tensors, **weights)
    torch.testing.assert_close(
        apply(method, base, [tensors[i] for i in order], **permuted), merged, rtol=1e-5, atol=1e-5
    )


@settings(max_examples=30, deadline=None)
@given(models(2, spread=1.0), st.floats(0, 1))
def test_slerp_is_symmetric(drawn: tuple[Tensor, list[Tensor]], t: float) -> None:
    _, (a, b) = drawn
    if a.numel() > 1 and torch.cosine_similarity(a.reshape(-1), b.reshape(-1), dim=0) < -0.99:
        return  # no shortest arc
    forth, back = (merge("slerp", [y], base=x, t=u, guard=None) for x, y, u in ((a, b, t), (b, a, 1 - t)))
    torch.testing.assert_close(forth, back, rtol=1e-5, atol=1e-5)
    weights = [[1 - t, t], [t, 1 - t]]
    forth, back = (
        merge("nuslerp", [x, y], weight=w, guard=None) for x, y, w in ((a, b, weights[0]), (b, a, weights[1]))
    )
    torch.testing.assert_close(forth, back, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(models(3, spread=0.5), st.floats(0, 1))
def test_spheres_keep_lengths(drawn: tuple[Tensor, list[Tensor]], t: float) -> None:
    tensors = [tensor / tensor.norm() for tensor in drawn[1]]
    if tensors[0].numel() == 1:
        return  # a scalar has no direction
    one = torch.tensor(1.0)
    torch.testing.assert_close(merge("slerp", tensors[1:2], base=tensors[0], t=t).norm(), one, atol=2e-4, rtol=0)
    for method, given_ in (("nuslerp", tensors[:2]), ("multislerp", tensors), ("karcher", tensors)):
        parameters = {"weight": [t + 0.1, 1.0, 1.0][: len(given_)]} if method != "karcher" else {}
        torch.testing.assert_close(merge(method, given_, **parameters).norm(), one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["linear", "nearswap", "arcee_fusion", "sce", "ties", "ram"])
@settings(max_examples=20, deadline=None)
@given(models(3, spread=0.02), st.lists(st.floats(0.1, 2), min_size=3, max_size=3))
def test_means_stay_between_the_inputs(method: str, drawn: tuple[Tensor, list[Tensor]], weights: list[float]) -> None:
    base, tensors = drawn
    merged = apply(method, base, tensors, **({"weight": weights} if "weight" in PARAMETERS[method] else {}))
    inputs = torch.stack([base, *tensors])
    assert (merged >= inputs.amin(0) - 1e-6).all()
    assert (merged <= inputs.amax(0) + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(models(), st.lists(st.floats(0.1, 2), min_size=3, max_size=3), st.floats(0.2, 1))
def test_sign_consensus(drawn: tuple[Tensor, list[Tensor]], weights: list[float], density: float) -> None:
    """What TIES adds has the sign of the kept deltas' weighted sum, and is the weighted mean of those that have it."""
    base, tensors = drawn
    keep = max(1, int(density * base.numel()))
    deltas = []
    for tensor in tensors:
        delta = tensor - base
        kept = torch.zeros_like(delta).reshape(-1)
        places = delta.abs().reshape(-1).argsort(descending=True, stable=True)[:keep]
        kept[places] = delta.reshape(-1)[places]
        deltas.append(kept.reshape(base.shape))
    d, w = torch.stack(deltas), torch.tensor(weights).reshape(-1, *[1] * base.dim())
    sign = torch.where((w * d).sum(0) >= 0, 1.0, -1.0)
    agree = d * sign > 0
    expected = (w * d * agree).sum(0) / (w * agree).sum(0).clamp_min(1e-9)
    merged = merge("ties", tensors, base=base, weight=weights, density=density, guard=None)
    torch.testing.assert_close(merged - base, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", HOMOGENEOUS)
@settings(max_examples=10, deadline=None)
@given(models(), st.sampled_from([-4, -1, 3]))
def test_scale(method: str, drawn: tuple[Tensor, list[Tensor]], power: int) -> None:
    """Inputs of another unit give the same result in that unit; exactly, since the unit is a power of two."""
    base, tensors = drawn
    merged = apply(method, base * 2.0**power, [tensor * 2.0**power for tensor in tensors])
    torch.testing.assert_close(merged, apply(method, base, tensors) * 2.0**power, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("method", "extra"), [("dare_linear", {}), ("della_linear", {"epsilon": 0.2})])
def test_expectation(method: str, extra: dict[str, float]) -> None:
    """Over many masks the mean is task arithmetic: in every element of DARE; DELLA favours the larger ones."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(40, 50, generator=generator)
    tensors = [base + 0.1 * torch.randn(40, 50, generator=generator) for _ in range(2)]
    settings_ = {"weight": [0.5, 0.5], "density": 0.4}
    runs = [
        merge(method, tensors, base=base, key=MaskKey(seed, "w"), guard=None, **settings_, **extra)
        for seed in range(300)
    ]
    exact = merge("task_arithmetic", tensors, base=base, weight=0.5) - base
    off = torch.stack(runs).mean(0) - base - exact
    if method == "dare_linear":
        noise = torch.stack(runs).std(0) / len(runs) ** 0.5
        assert off.abs().div(noise).max() < 5.5  # of 2000 elements
        assert off.norm() < 0.1 * exact.norm()
    assert torch.stack([(run - base).abs().sum() for run in runs]).mean() > exact.abs().sum() * 0.9


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 99))
def test_exact_count(elements: int, density: float, seed: int) -> None:
    """Of deltas with many equal magnitudes exactly the asked number survives, the largest, the first among equals."""
    delta = np.random.default_rng(seed).integers(1, 5, elements) * np.random.default_rng(seed + 1).choice(
        [-1, 1], elements
    )
    model = torch.from_numpy(delta.astype(np.float32))
    merged = merge("ties", [model], base=torch.zeros(elements), weight=1.0, density=density, guard=None)
    keep = max(1, int(density * elements)) if density > 0 else 0
    kept = np.argsort(-np.abs(delta), kind="stable")[:keep]
    expected = np.zeros(elements)
    expected[kept] = delta[kept]
    np.testing.assert_array_equal(merged.numpy(), expected)
