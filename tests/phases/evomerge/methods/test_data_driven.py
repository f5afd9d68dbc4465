"""Merging by data: Fisher-weighted averages and regression means, against the problems that they solve."""

import torch

from phases.evomerge.methods.fisher import diagonal_fisher
from phases.evomerge.methods.regmean import regmean


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers from a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fisher_minimises_the_quadratic_losses() -> None:
    """It is the least point of sum_i w_i F_i (x - theta_i)^2, with each F_i scaled to a mean of one."""
    tensors = [rand(5, 7, seed=i) for i in range(3)]
    fishers = [rand(5, 7, seed=10 + i).square() for i in range(3)]
    weights = [0.5, 1.0, 0.2]
    merged = diagonal_fisher(tensors, fishers, weights).requires_grad_()
    loss = sum(
        (w * f / f.mean() * (merged - t).square()).sum() for w, f, t in zip(weights, fishers, tensors, strict=True)
    )
    (gradient,) = torch.autograd.grad(loss, merged)
    assert gradient.abs().max() < 1e-3


def test_fisher_without_information_is_the_weighted_mean() -> None:
    tensors = [torch.zeros(4), torch.ones(4)]
    for fisher in (torch.zeros(4), torch.ones(4)):
        merged = diagonal_fisher(tensors, [fisher] * 2, [1.0, 3.0])
        torch.testing.assert_close(merged, torch.full((4,), 0.75))


def test_fisher_follows_who_knows() -> None:
    merged = diagonal_fisher(
        [torch.zeros(2), torch.ones(2)], [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], [1.0, 1.0]
    )
    torch.testing.assert_close(merged, torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_regmean_solves_the_regression() -> None:
    """With whole Gram matrices it is the least-squares layer for all models' inputs and outputs."""
    inputs = [rand(60, 6, seed=i) @ rand(6, 6, seed=20 + i) for i in range(3)]
    weights = [rand(4, 6, seed=30 + i) for i in range(3)]
    merged = regmean(weights, [x.T @ x for x in inputs], scale=1.0)
    outputs = torch.cat([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(inputs).double(), outputs.double()).solution.T
    torch.testing.assert_close(merged.double(), expected, rtol=1e-3, atol=1e-3)


def test_regmean_of_equal_models_and_of_unused_inputs() -> None:
    weight = rand(4, 6)
    gram = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 0.0]))
    torch.testing.assert_close(regmean([weight, weight], [gram, 2 * gram]), weight, rtol=1e-4, atol=1e-4)
    other = rand(4, 6, seed=1)
    merged = regmean([weight, other], [gram, gram])
    torch.testing.assert_close(merged[:, 5], (weight[:, 5] + other[:, 5]) / 2)  # never seen: the plain mean
