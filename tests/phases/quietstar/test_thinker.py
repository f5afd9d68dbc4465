"""Thinking over a text: predictions, losses and the estimator against direct computation, and exact resume."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError, NumericalError
from phases.quietstar import sources
from phases.quietstar.chain import END_ID, PAD_ID, START_ID
from phases.quietstar.config import LearningConfig, SamplingConfig, ThoughtConfig
from phases.quietstar.sources import Source, Thinking
from phases.quietstar.thinker import Thinker
from phases.quietstar.window import Stage
from phases.training.config import TrainingConfig
from phases.training.loop import StepReport, train
from phases.training.state import TrainState

ModelOf = Callable[..., TinyTitan]


def rows_of(seed: int, *shape: int) -> Tensor:
    return torch.randint(16, 280, shape, generator=torch.Generator().manual_seed(seed))


def thinker_of(model: TinyTitan, learning: dict[str, float] | None = None, **changes: object) -> Thinker:
    config = ThoughtConfig.model_validate({"parallel": 2, "length": 3, "lookahead": 2, "injection": "all"} | changes)
    torch.manual_seed(1)
    thinker = Thinker(model, config, LearningConfig.model_validate(learning or {}))
    with torch.no_grad():
        thinker.mixing.layers[-1].weight.normal_()
    return thinker


def given_thoughts(tokens: Tensor) -> Source:
    """Thoughts (B, M, n) decided beforehand."""
    return lambda thinker, stage, positions, length: tokens


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 99), st.integers(3, 12), st.booleans())
def test_mixed_predictions_are_those_of_plain_text_with_the_thought_in_it(
    model_of: ModelOf, seed: int, length: int, adaptive: bool
) -> None:
    model = model_of(seed, segment_len=32)
    thinker = thinker_of(model, min_length=1 if adaptive else None)
    rows = rows_of(seed, 2, length)
    with torch.no_grad():
        seen = thinker.observe(rows)
        plain = model.read(rows[:, :-1]).outputs
        for b, p, g in itertools.product(range(2), range(seen.positions.shape[1]), range(2)):
            position, count = int(seen.positions[b, p]), int(seen.lengths[b, p])
            text = [*rows[b, : position + 1], START_ID, *seen.tokens[b, p, g, :count], END_ID]
            for ahead in range(int(seen.exist[b, p].sum())):
                thought = model.read(torch.tensor([text])).outputs[0, -1]
                base = plain[b, position + ahead]
                weight = thinker.mixing(base, thought)
                logs = [torch.log_softmax(h @ model.head_weight.T, -1) for h in (base, thought)]
                expected = torch.log_softmax((1 - weight) * logs[0] + weight * logs[1], -1)
                found = torch.log_softmax(seen.mixed[b, p, g, ahead] @ model.head_weight.T, -1)
                assert torch.allclose(found, expected, atol=3e-5)
                assert seen.targets[b, p, ahead] == rows[b, position + ahead + 1]
                text.append(int(seen.targets[b, p, ahead]))


def test_places_are_everywhere_but_behind_the_last_input_over_all_segments(model_of: ModelOf) -> None:
    thinker = thinker_of(model_of())
    for length in (3, 8, 9, 10, 17, 18, 30):
        assert thinker.observe(rows_of(0, 1, length)).positions[0].tolist() == list(range(length - 2))


def test_the_estimators_expectation_is_the_gradient_of_the_expected_loss(model_of: ModelOf) -> None:
    """All pairs of all thoughts of two tokens, in a nucleus so small that they can be enumerated."""
    model = model_of(3, segment_len=32)
    with torch.no_grad():
        model.embedding.weight.mul_(4)
    sampling = SamplingConfig(top_p=0.3)
    thinker = thinker_of(model, {"base_weight": 0.0}, length=2, lookahead=2, sampling=sampling)
    rows = rows_of(7, 1, 3)
    parameters = [p for p in thinker.parameters() if p.requires_grad]

    torch.manual_seed(0)
    many = thinker_of(model, {}, parallel=16, length=2, sampling=sampling)
    thoughts = {tuple(t) for _ in range(30) for t in many.observe(rows).tokens.flatten(0, 2).tolist()}
    every = [torch.tensor(t) for t in sorted(thoughts)]
    assert 4 <= len(every) <= 12
    expected, chances, objective = [torch.zeros_like(p) for p in parameters], list[float](), torch.zeros(())
    for thought in every:
        seen = thinker.observe(rows, given_thoughts(thought.expand(1, 2, -1)))
        chance = thinker.log_probs(seen)[0, 0, 0].exp()
        loss, _ = thinker.nll(seen, torch.full((1, 1, 2, 2), 0.25))
        objective = objective + chance * loss
        chances.append(float(chance.detach()))
    assert sum(chances) == pytest.approx(1, abs=1e-4)
    exact = torch.autograd.grad(objective, parameters, allow_unused=True)
    for (i, a), (j, b) in itertools.product(enumerate(every), repeat=2):
        thinker.source = given_thoughts(torch.stack([a, b]).unsqueeze(0))
        gradients = torch.autograd.grad(thinker.loss(rows)[0], parameters, allow_unused=True)
        for total, gradient in zip(expected, gradients, strict=True):
            if gradient is not None:
                total += chances[i] * chances[j] * gradient
    for found, wanted in zip(expected, exact, strict=True):
        if wanted is not None:
            assert torch.allclose(found, wanted, atol=1e-5 + 1e-3 * float(wanted.abs().max()))


def test_policy_weight_zero_leaves_the_likelihood_alone(model_of: ModelOf) -> None:
    model, rows = model_of(2), rows_of(1, 2, 12)
    thinker = thinker_of(model, {"policy_weight": 0.0, "base_weight": 0.0})
    torch.manual_seed(3)
    loss, metrics = thinker.loss(rows)
    torch.manual_seed(3)
    seen = thinker.observe(rows)
    exist = seen.exist.unsqueeze(2).expand_as(seen.weight)
    nll = thinker.nll(seen, exist / exist.sum())[1]
    assert float(loss.detach()) == pytest.approx(float(nll.detach()[exist].mean()), abs=1e-5)
    assert "advantage" not in metrics


def test_the_likelihood_is_weighted_by_tokens_that_exist(model_of: ModelOf) -> None:
    """Padding behind a text changes nothing of the loss behind its thoughts."""
    model, rows = model_of(2, segment_len=32), rows_of(1, 1, 9)
    thinker = thinker_of(model, {"base_weight": 0.0})
    thoughts = rows_of(5, 1, 2 * 20, 3)

    def loss_of(text: Tensor) -> float:
        thinker.source = lambda thinker, stage, positions, length: thoughts[:, : positions.shape[1]]
        return float(thinker.loss(text)[0].detach())

    padded = torch.cat([rows, torch.full((1, 6), PAD_ID)], dim=1)
    whole = torch.cat([rows, torch.full((1, 1), PAD_ID)], dim=1)
    assert loss_of(padded) == pytest.approx(loss_of(whole), abs=1e-5)


def test_drift_is_zero_at_the_start_and_pulls_back_from_elsewhere(model_of: ModelOf) -> None:
    model, rows = model_of(2), rows_of(1, 2, 12)
    reference = model_of(2)

    def loss_with(weight: float, start: TinyTitan) -> float:
        learning = LearningConfig(kl_weight=weight, base_weight=0, policy_weight=0)
        config = ThoughtConfig(parallel=1, length=2, lookahead=2)
        torch.manual_seed(1)
        return float(Thinker(model, config, learning, reference=start).loss(rows)[0].detach())

    assert loss_with(1.0, reference) == pytest.approx(loss_with(0.0, reference), abs=1e-5)
    assert loss_with(1.0, model_of(3)) > loss_with(0.0, reference) + 0.05


def test_every_parameter_learns_and_the_reference_is_none_of_them(model_of: ModelOf) -> None:
    thinker = Thinker(model_of(max_ponder_steps=3), ThoughtConfig(length=3, lookahead=2), reference=model_of(4))
    with torch.no_grad():
        thinker.mixing.layers[-1].weight.normal_()
    thinker.loss(rows_of(2, 2, 33))[0].backward()
    assert {name for name, p in thinker.named_parameters() if p.grad is None or not p.grad.any()} == set()
    assert all(name.startswith(("model.", "mixing.", "markers")) for name, _ in thinker.named_parameters())


@pytest.mark.parametrize("injection", ["entropy", "attention", "random", "matched"])
def test_stopped_and_resumed_training_ends_with_the_same_bits(model_of: ModelOf, injection: str) -> None:
    config = TrainingConfig(steps=4, batch_size=2, warmup_steps=0, checkpoint_every=2, precision="fp32")
    kept = list[TrainState]()

    def run(state: TrainState | None, on_step: Callable[[StepReport], None]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        thinker = thinker_of(model_of(5), injection=injection)
        train(thinker, lambda step: rows_of(step, 2, 20), config, state=state, on_step=on_step, save=kept.append)
        return thinker.state_dict()

    whole = run(None, lambda report: None)
    torch.manual_seed(12345)
    again = run(TrainState.from_files(kept[0].to_files()), lambda report: None)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_later_token_changes_nothing_before_it(model_of: ModelOf) -> None:
    thinker = thinker_of(model_of(2))
    rows = rows_of(1, 2, 24)
    changed = rows.clone()
    changed[:, 15] += 1
    thoughts = rows_of(5, 2, 2 * 22, 3)

    def source(thinker: Thinking, stage: Stage, positions: Tensor, length: int) -> Tensor:
        return thoughts[:, 2 * int(positions[0, 0]) :][:, : positions.shape[1]]

    with torch.no_grad():
        before, after = thinker.observe(rows, source), thinker.observe(changed, source)
    same = before.positions[0] + thinker.config.lookahead <= 15
    assert torch.equal(before.mixed[:, same], after.mixed[:, same])
    assert not torch.equal(before.mixed[:, 14], after.mixed[:, 14])


def test_controls_are_what_they_are_called(model_of: ModelOf) -> None:
    thinker, rows = thinker_of(model_of(2)), rows_of(1, 3, 10)
    greedy = SamplingConfig(temperature=0)
    own = thinker.observe(rows, sources.sampled(greedy)).tokens
    assert torch.equal(thinker.observe(rows, sources.shuffled(greedy)).tokens, own.roll(1, 0))
    assert thinker.observe(rows, sources.pause).tokens.unique().tolist() == [sources.PAUSE_ID]
    assert thinker.observe(rows, sources.random).tokens.min() >= 16
    assert torch.equal(own[:, :, 0], own[:, :, 1])  # greedy thoughts do not differ


def test_greedy_thoughts_are_those_of_a_loop(model_of: ModelOf) -> None:
    model, rows = model_of(2, segment_len=32), rows_of(1, 2, 10)
    found = thinker_of(model).observe(rows, sources.sampled(SamplingConfig(temperature=0))).tokens
    for b, p in itertools.product(range(2), range(8)):
        text = [*rows[b, : p + 1].tolist(), START_ID]
        for token in found[b, p, 0].tolist():
            logits = model.read(torch.tensor([text])).outputs[0, -1] @ model.head_weight.T
            assert token == int(logits[16:].argmax()) + 16
            text.append(token)


def test_bad_input_is_named(model_of: ModelOf) -> None:
    with pytest.raises(ConfigError, match="use at most 5"):
        Thinker(model_of(), ThoughtConfig(length=8, lookahead=2))
    with pytest.raises(ValueError, match="parallel"):
        ThoughtConfig(parallel=0)
    with pytest.raises(ConfigError, match="min_length = 5"):
        ThoughtConfig(length=4, min_length=5)
    with pytest.raises(ConfigError, match="too short"):
        thinker_of(model_of()).loss(rows_of(0, 2, 2))
    broken = thinker_of(model_of())
    with torch.no_grad():
        broken.mixing.layers[0].weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="thought rewards are not finite"):
        broken.loss(rows_of(0, 2, 12))
