"""Parallel thoughts against a true loop over positions that reads each prefix and thought as plain text."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phases.cognate.titan import TinyTitan
from phases.quietstar.window import Stage, Thoughts

ModelOf = Callable[..., TinyTitan]


def random_tokens(seed: int, *shape: int) -> Tensor:
    return torch.randint(16, 280, shape, generator=torch.Generator().manual_seed(seed))


def think(model: TinyTitan, tokens: Tensor, positions: Tensor, thoughts: Tensor, pieces: list[int]) -> Tensor:
    """Outputs (B, M, A, D) of the tokens `thoughts` (B, M, A) behind the `positions` (B, M) of `tokens` (B, T)."""
    rows = torch.cat([tokens, tokens[:, :1]], dim=1)
    found = tokens.new_zeros(*thoughts.shape, model.config.d_model, dtype=torch.float32)
    for segment in model.segments(rows):
        stage = Stage.of_segment(segment, model.config.segment_len)
        end = segment.start + segment.outputs.shape[1]
        here = ((positions[0] >= segment.start - 1) & (positions[0] < end - (end < tokens.shape[1]))).nonzero()[:, 0]
        if len(here):
            window = Thoughts(stage, positions[:, here])
            parts = [window.read(model, model.embedding(part)) for part in thoughts[:, here].split(pieces, dim=2)]
            found = found.index_copy(1, here, torch.cat(parts, dim=2))
    return found


def loop(model: TinyTitan, tokens: Tensor, positions: Tensor, thoughts: Tensor) -> Tensor:
    """The same, by training's own pass over each prefix with its thought behind it."""
    found = torch.zeros(*thoughts.shape, model.config.d_model)
    for row, column in torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(thoughts.shape[1])):
        prefix = tokens[row, : positions[row, column] + 1]
        text = torch.cat([prefix, thoughts[row, column], prefix[:1]]).unsqueeze(0)
        outputs = torch.cat([segment.outputs for segment in model.segments(text)], dim=1)
        found[row, column] = outputs[0, len(prefix) :]
    return found


def all_gradients(model: TinyTitan, outputs: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    (outputs * weights).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@settings(max_examples=8, deadline=None)
@given(st.data(), st.integers(0, 99), st.integers(1, 3), st.integers(1, 20), st.integers(1, 6), st.booleans())
def test_logits_and_gradients_are_those_of_a_loop_over_positions(
    model_of: ModelOf, data: st.DataObject, seed: int, batch: int, length: int, new: int, everywhere: bool
) -> None:
    """All in one segment, so that the loop's text crosses no border within a thought."""
    model = model_of(seed, segment_len=32)
    tokens, per_position = random_tokens(seed, batch, length), data.draw(st.integers(1, 3))
    if everywhere:
        positions = torch.arange(length).expand(batch, -1)
    else:  # another choice in each row, as entropy makes it
        count = data.draw(st.integers(1, length))
        generator = torch.Generator().manual_seed(seed)
        positions = torch.stack([torch.randperm(length, generator=generator)[:count].sort().values for _ in tokens])
    positions = positions.repeat_interleave(per_position, dim=1)
    thoughts = random_tokens(seed + 1, batch, positions.shape[1], new)
    cut = data.draw(st.integers(1, new))
    found = think(model, tokens, positions, thoughts, [cut, new - cut] if cut < new else [new])
    expected = loop(model, tokens, positions, thoughts)
    assert torch.allclose(found @ model.head_weight.T, expected @ model.head_weight.T, atol=1e-5)
    for (name, a), b in zip(all_gradients(model, found).items(), all_gradients(model, expected).values(), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-8, name


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 99), st.integers(9, 40), st.integers(1, 4))
def test_thoughts_within_a_segment_are_read_like_text_with_memory_and_halting(
    model_of: ModelOf, seed: int, length: int, new: int
) -> None:
    model = model_of(seed)
    tokens = random_tokens(seed, 2, length)
    fits = torch.tensor([i for i in range(length - 1) if (i + 1) % 8 + new <= 8])
    if not len(fits):
        return
    positions = fits.expand(2, -1)
    thoughts = random_tokens(seed + 1, 2, len(fits), new)
    with torch.no_grad():
        found = think(model, tokens, positions, thoughts, [1] * new)
        for column, position in enumerate(fits.tolist()):
            text = torch.cat([tokens[:, : position + 1], thoughts[:, column]], dim=1)
            assert torch.allclose(found[:, column], model.read(text).outputs[:, position + 1 :], atol=1e-5)


def test_the_comparison_covers_halting_and_memory(model_of: ModelOf) -> None:
    model = model_of()
    reading = model.read(random_tokens(0, 3, 40))
    assert set(reading.steps.unique().tolist()) == {1, 2, 3}
    assert reading.state.memory.valid.any()


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 21])
def test_a_state_and_a_training_segment_give_the_same_thoughts(model_of: ModelOf, length: int) -> None:
    """Thoughts longer than what is left of the segment included."""
    model = model_of()
    tokens, thoughts = random_tokens(3, 2, length + 1), random_tokens(4, 2, 3, 12)
    positions = torch.full((2, 3), length - 1)
    with torch.no_grad():
        trained = think(model, tokens, positions, thoughts, [12])
        state = model.read(tokens[:, :length]).state
        window = Thoughts(Stage.of_state(state), positions)
        served = torch.cat([window.read(model, model.embedding(x)) for x in thoughts.split(5, dim=2)], dim=2)
    assert torch.allclose(served, trained, atol=1e-5)


@pytest.mark.parametrize("what", ["later token", "other thought", "later thought token"])
def test_nothing_leaks(model_of: ModelOf, what: str) -> None:
    """Outputs are bit-identical where they must not depend on what was changed, and change where they do."""
    model = model_of()
    tokens, thoughts = random_tokens(5, 2, 30), random_tokens(6, 2, 29, 4)
    positions = torch.arange(29).expand(2, -1)
    changed_tokens, changed = tokens.clone(), thoughts.clone()
    if what == "later token":
        changed_tokens[:, 13] += 1
        same, different = (slice(0, 13), slice(None)), (slice(13, 29), slice(None))
    elif what == "other thought":
        changed[:, 13] += 1
        same, different = (torch.arange(29) != 13, slice(None)), (slice(13, 14), slice(None))
    else:
        changed[:, 13, 2] += 1
        same, different = (slice(13, 14), slice(0, 2)), (slice(13, 14), slice(2, 4))
    with torch.no_grad():
        before = think(model, tokens, positions, thoughts, [4])
        after = think(model, changed_tokens, positions, changed, [4])
    rows = (slice(None),)
    assert torch.equal(before[rows + same], after[rows + same])
    assert not torch.allclose(before[rows + different], after[rows + different], atol=1e-3)
