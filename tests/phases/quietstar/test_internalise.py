"""Thoughts that become ponder steps: what each step is to predict, and that the lesson is learned."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phases.cognate.titan import TinyTitan
from phases.quietstar.config import LearningConfig, ThoughtConfig
from phases.quietstar.internalise import WORTH, Internaliser, token_of
from phases.quietstar.measure import GREEDY
from phases.quietstar.sources import sampled
from phases.quietstar.thinker import Thinker

ModelOf = Callable[..., TinyTitan]


def teacher_of(model: TinyTitan, length: int) -> Thinker:
    config = ThoughtConfig(parallel=2, length=length, lookahead=2, injection="all")
    torch.manual_seed(1)
    return Thinker(model, config, LearningConfig(initial_weight=0.9))


@given(st.integers(2, 9), st.integers(1, 64))
def test_steps_take_the_tokens_of_a_thought_in_order_up_to_the_last(steps: int, length: int) -> None:
    found = [token_of(step, steps, torch.tensor([length])) for step in range(steps - 1)]
    taken = [int(token) for token, within in found if within]
    assert taken == sorted(set(taken))
    assert taken[-1] == length - 1
    assert len(taken) == min(length, steps - 1)
    if length < steps:
        assert taken == list(range(length))


@pytest.mark.parametrize("length", [2, 4])
def test_targets_are_greedy_thoughts_where_they_helped_and_the_text_elsewhere(model_of: ModelOf, length: int) -> None:
    teacher = teacher_of(model_of(3, segment_len=16, max_ponder_steps=5), length)
    rows = torch.randint(16, 280, (3, 12), generator=torch.Generator().manual_seed(2))
    pupil = Internaliser(teacher)
    targets, thought = pupil.targets(rows)
    assert pupil.model.config.train_ponder_steps == max(3, length + 1) == len(targets)
    config = teacher.config.model_copy(update={"parallel": 1, "lookahead": 1})
    with torch.no_grad():
        seen = teacher.observe(rows, sampled(GREEDY), config)
        nll = teacher.nll(seen, torch.ones_like(seen.weight))[1].flatten(2)[:, :, 0]
    assert thought.any()
    assert not thought.all()
    for b, t in torch.cartesian_prod(torch.arange(3), torch.arange(11)).tolist():
        places = (seen.positions[b] == t).nonzero().flatten().tolist()
        helped = bool(places) and bool(nll[b, places[0]] < seen.base_nll[b, t] - WORTH)
        said = seen.tokens[b, places[0], 0].tolist() if helped else []
        text = [int(rows[b, t + 1])] * (len(targets) - len(said))
        assert targets[:, b, t].tolist() == said + text
        assert bool(thought[b, t]) == helped


def test_it_learns_what_the_thoughts_say_and_leaves_the_teacher_alone(model_of: ModelOf) -> None:
    teacher = teacher_of(model_of(3, segment_len=16, max_ponder_steps=5), 2)
    before = [parameter.clone() for parameter in teacher.parameters()]
    rows = torch.randint(16, 280, (3, 12), generator=torch.Generator().manual_seed(2))
    pupil = Internaliser(teacher)
    assert {name for name, _ in pupil.named_parameters()} == {f"model.{n}" for n, _ in teacher.model.named_parameters()}
    optimiser = torch.optim.Adam(pupil.parameters(), 1e-2)
    losses = list[float]()
    for _ in range(40):
        optimiser.zero_grad()
        loss, metrics = pupil.loss(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert 0 < float(metrics["thought_share"]) < 1
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
