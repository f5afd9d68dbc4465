"""The divergence is the textbook one; the two others are what they are said to be."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from phases.baking.losses import forward_kl, token_losses, top_k_kl


@given(st.integers(0, 10_000))
def test_forward_kl_is_a_divergence(seed: int) -> None:
    a, b = (torch.randn(5, 11, generator=torch.Generator().manual_seed(s)) for s in (seed, seed + 1))
    assert (forward_kl(a, b) >= -1e-6).all()
    assert torch.allclose(forward_kl(a, a + 3), torch.zeros(5), atol=1e-5)  # logits are free up to a constant


def test_forward_kl_by_hand() -> None:
    p, q = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5, 0.5]])
    by_hand = 0.75 * torch.log(torch.tensor(1.5)) + 0.25 * torch.log(torch.tensor(0.5))
    assert torch.allclose(forward_kl(p.log(), q.log()), by_hand.view(1))


def test_forward_kl_has_its_minimum_at_the_teacher_and_hard_labels_do_not() -> None:
    teacher = torch.tensor([[0.7, 0.3]]).log()
    student = teacher.clone().requires_grad_()
    token_losses("forward_kl", teacher, student, torch.tensor([0])).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6
    student.grad = None
    token_losses("sft", teacher, student, torch.tensor([0])).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0.2


def test_top_k_ignores_what_lies_in_the_tail() -> None:
    teacher = torch.cat([torch.zeros(1, 5), torch.full((1, 20), -8.0)], 1)
    student = torch.cat([torch.zeros(1, 5), torch.randn(1, 20) - 8.0], 1)
    assert forward_kl(teacher, student) > 0
    assert top_k_kl(teacher, teacher).abs() < 1e-6
