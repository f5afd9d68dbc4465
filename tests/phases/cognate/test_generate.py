"""Generation: what is streamed is what is returned, stops hold back, sampling obeys its parameters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from phases.cognate.generate import Sampling, choose, complete, greedy_matches, stream
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.corpus.special import END, SPECIAL_IDS
from phases.corpus.tokenizer import encode, train_tokenizer
from phases.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["def f(x):\n    return 'ümläut €'\n" * 9], 300)


@pytest.fixture(scope="module")
def model() -> TinyTitan:
    torch.manual_seed(1)
    changes = {"vocab_size": 300, "d_model": 16, "n_layers": 2, "n_heads": 2, "hidden": 16, "segment_len": 16}
    return TinyTitan(PRESETS["nano"].model_copy(update=changes)).eval()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.lists(st.sampled_from(["e", "re", "\n", "ü", "f(x"]), max_size=2))
def test_pieces_add_up_and_stops_are_never_shown(
    model: TinyTitan, tokenizer: Tokenizer, seed: int, stop: list[str]
) -> None:
    pieces: list[str] = []
    sampling = Sampling(max_new_tokens=40, temperature=1.5, seed=seed, stop=tuple(stop))
    result = complete(model, tokenizer, "def", sampling, on_text=pieces.append)
    assert "".join(pieces) == result.text
    assert not any(text in result.text for text in stop)
    assert result.completion_tokens <= 40
    assert 1 <= result.mean_ponder_steps <= model.config.train_ponder_steps


def test_the_seed_decides_and_greedy_needs_none(model: TinyTitan, tokenizer: Tokenizer) -> None:
    def text(**changes: float) -> str:
        sampling = Sampling.model_validate({"max_new_tokens": 20, "temperature": 1.0} | changes)
        return complete(model, tokenizer, "def", sampling, on_text=lambda _: None).text

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text(temperature=0, seed=1) == text(temperature=0, seed=2)


def test_a_long_prompt_streams_through_segments(model: TinyTitan, tokenizer: Tokenizer) -> None:
    result = complete(model, tokenizer, "return x " * 60, Sampling(max_new_tokens=3), on_text=lambda _: None)
    assert result.prompt_tokens > 4 * model.config.segment_len


def test_an_empty_prompt_is_an_error(model: TinyTitan, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="nothing to continue"):
        stream(model, tokenizer, [], Sampling())


def drawn(logits: list[float], **changes: float) -> set[int]:
    sampling = Sampling.model_validate({"temperature": 1.0} | changes)
    generator = torch.Generator().manual_seed(0)
    return {choose(torch.tensor(logits), sampling, generator) for _ in range(300)}


def test_sampling_obeys_top_k_top_p_and_temperature() -> None:
    logits = [3.0, 2.0, 1.0, 0.0]  # probabilities .64 .24 .09 .03
    assert drawn(logits) == {0, 1, 2, 3}
    assert drawn(logits, top_k=2) == {0, 1}
    assert drawn(logits, top_p=0.6) == {0}
    assert drawn(logits, top_p=0.7) == {0, 1}
    assert drawn(logits, temperature=0) == {0}


def test_greedy_matches_are_what_greedy_decoding_finds(model: TinyTitan, tokenizer: Tokenizer) -> None:
    prompts = [encode(tokenizer, text) for text in ("def", "return x", "f")]
    greedy = []
    for prompt in prompts:
        state, ids = None, []
        logits, state = model(torch.tensor([prompt]))
        for _ in range(5):
            ids.append(int(logits[0, -1].argmax()))
            logits, state = model(torch.tensor([[ids[-1]]]), state)
        greedy.append(ids)
    wrong = [[*ids[:-1], (ids[-1] + 1) % 300] for ids in greedy]
    assert greedy_matches(model, prompts, wrong) == [False] * 3
    rows = [torch.tensor([prompt + ids]) for prompt, ids in zip(prompts, greedy, strict=True)]
    ended = [int(model(row)[0][0, -1].argmax()) == SPECIAL_IDS[END] for row in rows]
    assert greedy_matches(model, prompts, greedy) == ended
