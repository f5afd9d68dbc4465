"""Distillation: the loss against the plain formula, who is trained, and that it brings the student near."""

import torch
from torch import Tensor

from phases.bitnet.config import QuantisationConfig
from phases.bitnet.distill import Distillation
from phases.bitnet.losses import Predictions, distillation_loss
from phases.bitnet.titan import to_bitnet
from phases.cognate.titan import TinyTitan


def test_loss_and_gradient_are_those_of_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, taught, taught_weight = (
        torch.randn(shape, generator=generator) for shape in ((2000, 8), (30, 8), (2000, 6), (30, 6))
    )
    hidden.requires_grad_(True)
    weight.requires_grad_(True)
    found = distillation_loss(Predictions(hidden, weight), Predictions(taught, taught_weight))
    wanted = torch.nn.functional.kl_div(
        (hidden @ weight.T).log_softmax(1), (taught @ taught_weight.T).log_softmax(1), log_target=True, reduction="sum"
    )
    torch.testing.assert_close(found, wanted / 2000)
    gradients = (
        torch.autograd.grad(3 * found, (hidden, weight)),
        torch.autograd.grad(3 * wanted / 2000, (hidden, weight)),
    )
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_no_share_is_plain_training_and_a_model_is_no_distance_from_itself(titan: TinyTitan, rows: Tensor) -> None:
    loss, metrics = Distillation(titan, titan, 0.0).loss(rows)
    torch.testing.assert_close(loss, titan.loss(rows)[0])
    assert abs(float(metrics["divergence"])) < 1e-5


def test_the_student_alone_is_trained_and_comes_nearer(titan: TinyTitan, rows: Tensor) -> None:
    with torch.no_grad():
        titan.embedding.weight.mul_(20)  # so that it has something to say
    student = to_bitnet(titan, QuantisationConfig())
    lesson = Distillation(student, titan, 1.0)
    assert len(list(lesson.parameters())) == len(list(titan.parameters()))
    optimizer = torch.optim.AdamW(lesson.parameters(), lr=2e-3)
    divergences = []
    for _ in range(20):
        loss, metrics = lesson.loss(rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        divergences.append(float(metrics["divergence"]))
    assert divergences[-1] < 0.6 * divergences[0]
    assert all(parameter.grad is None for parameter in titan.parameters())
