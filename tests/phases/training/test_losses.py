"""The chunked cross-entropy against `F.cross_entropy` on full logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phases.training import losses as losses_module
from phases.training.losses import linear_cross_entropy


def _problem(tokens: int, vocabulary: int, width: int = 8, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 1009 + vocabulary)
    hidden = torch.randn(tokens, width, generator=generator) * scale
    weight = torch.randn(vocabulary, width, generator=generator)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(2, 60), st.integers(1, 40), st.booleans())
def test_equals_the_full_computation(tokens: int, vocabulary: int, chunk: int, weighted: bool) -> None:
    hidden, weight, targets = _problem(tokens, vocabulary)
    token_weights = torch.rand(tokens) if weighted else None
    expected_losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    expected = expected_losses @ token_weights if token_weights is not None else expected_losses.mean()
    loss, losses = linear_cross_entropy(hidden, weight, targets, token_weights, chunk)
    torch.testing.assert_close(losses, expected_losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    found = torch.autograd.grad(3 * loss, (hidden, weight))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_blocks_of_rows_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_module, "ROWS", 5)
    hidden, weight, targets = _problem(23, 11)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, None, 12)[1], expected)


def test_a_target_without_measurable_probability_has_a_finite_loss() -> None:
    hidden, weight, targets = _problem(40, 30, scale=200.0)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    assert expected.max() > 200, "far below the smallest fp32 probability"
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets)[1], expected)


def test_bf16_is_as_close_to_fp32_as_plain_autocast() -> None:
    hidden, weight, targets = _problem(256, 300, width=64, scale=0.2)
    exact = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        plain_loss = F.cross_entropy(F.linear(hidden, weight), targets)
        loss, losses = linear_cross_entropy(hidden, weight, targets, None, 64)
    assert losses.dtype == loss.dtype == torch.float32
    plain = torch.autograd.grad(plain_loss.float(), (hidden, weight))
    found = torch.autograd.grad(loss, (hidden, weight))
    for name, reference, theirs, ours in zip(("hidden", "weight"), exact, plain, found, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - reference).norm() <= 1.2 * (theirs - reference).norm(), name


def test_a_confident_token_keeps_its_gradient_in_bf16() -> None:
    """1 - p is 5e-4 here, which a probability rounded to bf16 would lose."""
    weight = torch.tensor([[7.6], [0.0]], requires_grad=True)
    hidden = torch.tensor([[1.0]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient[0, 0].item() == pytest.approx(-5.0e-4, rel=0.02)


class CountProducts(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.matmul)
        return func(*args, **(kwargs or {}))


def test_without_gradients_only_losses_are_computed() -> None:
    hidden, weight, targets = _problem(20, 30)
    with torch.no_grad(), CountProducts() as products:
        loss, losses = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert products.count == 1  # though both are parameters
    torch.testing.assert_close(losses, F.cross_entropy(hidden @ weight.T, targets, reduction="none"))


def test_losses_carry_no_gradient_and_a_second_backward_is_refused() -> None:
    loss, losses = linear_cross_entropy(*_problem(20, 30))
    assert not losses.requires_grad
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        loss.backward()


def test_the_logits_of_all_tokens_never_exist_at_once() -> None:
    hidden, weight, targets = _problem(512, 4096)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        loss, _ = linear_cross_entropy(hidden, weight, targets, None, 64)
        loss.backward()
    assert largest <= 64 * 4096
