"""The tasks of the ablations are what they say they are, and the write rules are told apart by memory alone."""

import torch

from benchmarks.cognate_pointer import CAP, MAX_DEPTH, chases
from benchmarks.cognate_recall import KEYS, PAIRS, STATEMENTS, VALUES, Recaller, measure_recall, streams


def test_the_answer_is_as_many_hops_away_as_the_depth_says() -> None:
    task = chases(200, torch.Generator().manual_seed(0))
    assert set(task.depths.tolist()) == set(range(1, MAX_DEPTH + 1))
    rows = torch.arange(200)
    at, arrived = task.starts, torch.zeros(200, dtype=torch.long)
    for hop in range(CAP):
        following = task.parents[rows, at]
        arrived += following != at
        at = following
        assert torch.equal(at, task.hops[hop])
    assert torch.equal(at, task.ends)
    assert torch.equal(arrived, task.depths)


def test_streams_state_every_pair_three_times_and_ask_for_it() -> None:
    tokens, questions, values = streams(5, torch.Generator().manual_seed(1))
    chunks = tokens.view(5, -1, 2)
    for row in range(5):
        pairs = [tuple(chunk) for chunk in chunks[row].tolist() if chunk[0] < KEYS]
        assert len(pairs) == PAIRS * STATEMENTS
        asked = zip(questions[row].view(PAIRS, 4)[:, 3].tolist(), values[row].tolist(), strict=True)
        assert sorted(pairs) == sorted(list(asked) * STATEMENTS)


def test_an_untrained_model_is_at_chance_and_keeps_its_configuration() -> None:
    torch.manual_seed(0)
    model = Recaller()
    before = model.memory.config
    assert measure_recall(model, "fifo", 24, 0, 20) < 4 / VALUES
    assert model.memory.config == before
