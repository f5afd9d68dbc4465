"""Coherence: every score moves with its own measurement alone, and corrupted thoughts are told from real ones."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError
from phases.quietstar.coherence import WEIGHTS, Evidence, auc, components, evidence, total
from phases.quietstar.config import ThoughtConfig
from phases.quietstar.thinker import Thinker

ModelOf = Callable[..., TinyTitan]


@pytest.fixture(scope="module")
def thinker(model_of: ModelOf) -> Thinker:
    """A random model with predictions sharp enough for its own thoughts to be likely."""
    model = model_of(3, segment_len=32)
    with torch.no_grad():
        model.embedding.weight.mul_(4)
    return Thinker(model, ThoughtConfig(parallel=2, length=4, lookahead=2, injection="all"))


def rows_of(seed: int, *shape: int) -> Tensor:
    return torch.randint(16, 280, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("measured", "score"),
    [
        ("cosine", "semantic"),
        ("order_gain", "logical"),
        ("place_gain", "relevance"),
        ("log_probability", "fluency"),
    ],
)
def test_one_measurement_moves_one_score_and_the_total_by_its_weight(measured: str, score: str) -> None:
    start = Evidence(
        cosine=torch.tensor([0.5]),
        order_gain=torch.tensor([0.5]),
        place_gain=torch.tensor([0.5]),
        log_probability=torch.tensor([-2.0]),
        vocabulary=280,
    )
    before = components(start)
    after = components(replace(start, **{measured: getattr(start, measured) + 0.3}))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {score}
    moved = WEIGHTS[score] * (after[score] - before[score])
    assert torch.allclose(total(after) - total(before), moved, atol=1e-6)


def test_weights_are_the_documented_ones_and_scores_stay_in_bounds() -> None:
    assert list(WEIGHTS.values()) == [0.30, 0.25, 0.25, 0.20]
    for extreme in (-50.0, 50.0):
        value = torch.tensor([extreme])
        scores = components(Evidence(value, value, value, value, 280))
        assert all(0 <= float(score) <= 1 for score in scores.values())


def test_measurements_are_those_of_plain_text(thinker: Thinker) -> None:
    model, rows = thinker.model, rows_of(1, 3, 6)
    thoughts = thinker.observe(rows).tokens.flatten(1, 2)
    found = evidence(thinker, rows, thoughts)
    place, each = 3, 1

    def log_probability(row: int, order: list[int]) -> float:
        thought = thoughts[1, place * 2 + each, order].tolist()
        text = [*rows[row, : place + 1].tolist(), 2, *thought]
        logs = torch.log_softmax(model.read(torch.tensor([text])).outputs[0] @ model.head_weight.T, -1)
        logged = (float(logs.detach()[place + 1 + k, token]) for k, token in enumerate(thought))
        return sum(max(log, -math.log(len(model.head_weight))) for log in logged) / len(thought)

    own, others = log_probability(1, [0, 1, 2, 3]), [log_probability(row, [0, 1, 2, 3]) for row in (2, 0)]
    index = 1 * thoughts.shape[1] + place * 2 + each
    assert float(found.log_probability[index]) == pytest.approx(own, abs=1e-4)
    assert float(found.place_gain[index]) == pytest.approx(own - sum(others) / 2, abs=1e-4)
    assert float(found.order_gain[index]) == pytest.approx(own - log_probability(1, [2, 3, 0, 1]), abs=1e-4)


def test_corrupted_thoughts_score_lower(thinker: Thinker) -> None:
    torch.manual_seed(0)
    rows = rows_of(2, 12, 8)
    own = thinker.observe(rows).tokens.flatten(1, 2)
    real = components(evidence(thinker, rows, own))
    for corrupted in (own.roll(1, 0), torch.randint(16, 280, own.shape), torch.full_like(own, 20)):
        found = components(evidence(thinker, rows, corrupted))
        assert auc(total(real), total(found)) > 0.8
        assert auc(real["relevance"], found["relevance"]) > 0.7
        assert auc(real["fluency"], found["fluency"]) > 0.8


def test_auc_counts_ties_half() -> None:
    assert auc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])) == 0.875
    assert auc(torch.ones(3), torch.ones(3)) == 0.5


def test_a_single_text_has_no_relevance(thinker: Thinker) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        evidence(thinker, rows_of(1, 1, 6), rows_of(2, 1, 8, 4))
