"""Baking lowers the divergence from the prompted model and keeps what retention covers; bad input is refused first."""

import copy

import pytest
import torch
from tokenizers import Tokenizer

from phases.baking.config import PromptBakingConfig
from phases.baking.dialogues import UNPROMPTED, Prompt
from phases.baking.examples import (
    Example,
    baking_examples,
    check_prompt,
    draw_requests,
    reply_logits,
    reply_outputs_each,
    retention_examples,
    under,
)  # fmt: skip
from phases.baking.lessons import LESSONS
from phases.baking.measure import Subject, constraint_rate, divergence, identity_rate, observations, tool_rates
from phases.baking.persona import Persona
from phases.baking.prompt_baking import bake, mixed_batches
from phases.baking.rollouts import sample_replies
from phases.cognate.generate import Sampling, stream
from phases.cognate.titan import TinyTitan
from phases.corpus.special import END, SPECIAL_IDS
from phases.errors import ConfigError, NumericalError
from phases.training.config import TrainingConfig
from phases.training.state import TrainState

PROMPT = Prompt.of(Persona(), tuple(LESSONS))


def _training(steps: int, **changes: object) -> TrainingConfig:
    values = {"steps": steps, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 2, "checkpoint_every": 5}
    return PromptBakingConfig().training.model_copy(update=values | changes)


def _config(steps: int, **changes: object) -> PromptBakingConfig:
    return PromptBakingConfig().model_copy(update={"training": _training(steps)} | changes)


@pytest.fixture
def examples(titan: TinyTitan, tokenizer: Tokenizer) -> list[Example]:
    requests = draw_requests(LESSONS, "baking", 12, 0)
    return baking_examples(titan, tokenizer, PROMPT, requests, 0)


def test_greedy_replies_are_those_of_the_streaming_generator(titan: TinyTitan, tokenizer: Tokenizer) -> None:
    prefixes = [[20, 300, 41], [33, 40, 50, 60], [77, 300, 41], [20, 300, 42]]
    replies = sample_replies(titan, prefixes, seed=0, max_tokens=12, temperature=0)
    for prefix, reply in zip(prefixes, replies, strict=True):
        generation = stream(titan, tokenizer, prefix, Sampling(max_new_tokens=12, temperature=0))
        text = "".join(generation.pieces)
        assert tokenizer.decode([token for token in reply if token >= len(SPECIAL_IDS)]) == text


def test_sampled_replies_are_the_same_for_the_same_seed_and_end_where_they_end(titan: TinyTitan) -> None:
    prefixes = [[20, 300, 41]] * 20
    first, again, other = (sample_replies(titan, prefixes, seed=s, max_tokens=6) for s in (1, 1, 2))
    assert first == again != other
    assert all(SPECIAL_IDS[END] not in reply[:-1] for reply in first)


def test_training_and_inference_see_the_same_replies(titan: TinyTitan, examples: list[Example]) -> None:
    prefixes, replies = [e.teacher for e in examples], [e.reply for e in examples]
    with torch.no_grad():
        inference = reply_logits(titan, prefixes, replies)
    training = reply_logits(titan, prefixes, replies)
    assert training.requires_grad
    assert torch.allclose(inference, training, atol=1e-4)
    assert len(inference) == sum(map(len, replies))


def test_outputs_of_each_reply_are_those_of_all_together(titan: TinyTitan, examples: list[Example]) -> None:
    pairs = [(e.student, e.reply) for e in examples]
    together = torch.cat(reply_outputs_each(titan, pairs)) @ titan.head_weight.T
    assert torch.allclose(together, reply_logits(titan, *zip(*pairs, strict=True)), atol=1e-4)


def test_a_model_diverges_from_itself_only_by_the_prompt(titan: TinyTitan, examples: list[Example]) -> None:
    assert divergence(titan, titan, under(examples)) == pytest.approx(0, abs=1e-6)
    assert divergence(titan, titan, examples) > 0.01


def test_baking_takes_over_what_the_prompt_does(
    titan: TinyTitan, tokenizer: Tokenizer, examples: list[Example]
) -> None:
    base = copy.deepcopy(titan)
    retained = retention_examples(base, tokenizer, LESSONS, draw_requests(LESSONS, "baking", 8, 1), PROMPT, 1)
    adapted = bake(titan, examples, retained, _config(60), 0)
    before, after = divergence(base, base, examples), divergence(base, adapted.plain(), examples)
    assert after < 0.3 * before
    half = divergence(base, adapted.plain(0.5), examples)
    assert after < half < before
    for name, tensor in base.state_dict().items():  # its own weights stay
        assert torch.equal(adapted.merged(0.0)[name], tensor)


def test_the_loss_is_in_full_precision_whatever_the_loop_runs_in(titan: TinyTitan, examples: list[Example]) -> None:
    baked = [
        bake(copy.deepcopy(titan), examples, [], _config(3, training=_training(3, precision=precision)), 0).merged()
        for precision in ("fp32", "bf16")
    ]
    for name, tensor in baked[0].items():
        assert torch.equal(tensor, baked[1][name]), name


def test_a_stopped_baking_goes_on_to_the_same_weights(titan: TinyTitan, examples: list[Example]) -> None:
    states: list[TrainState] = []
    whole = bake(copy.deepcopy(titan), examples, [], _config(10), 0, save=states.append)
    again = bake(copy.deepcopy(titan), examples, [], _config(10), 0, state=states[0])
    for name, tensor in whole.merged().items():
        assert torch.equal(tensor, again.merged()[name]), name


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.25, 2), (0.5, 4)])
def test_a_batch_has_its_share_of_retention(share: float, kept: int) -> None:
    batch = mixed_batches(10, 5, 8, share, 0)(3)
    assert batch.shape == (8, 1)
    assert int((batch >= 10).sum()) == kept
    assert torch.equal(batch, mixed_batches(10, 5, 8, share, 0)(3))


def test_measurements_of_a_model_that_knows_nothing(titan: TinyTitan, tokenizer: Tokenizer) -> None:
    subject = Subject(titan, tokenizer, None)
    requests = draw_requests(LESSONS, "held_out", 30, 0)
    found = tool_rates(subject, requests, LESSONS, PROMPT)
    assert found["all"].total == 30
    assert found["single"].value == 0
    nothing_offered = tool_rates(subject, requests, LESSONS, UNPROMPTED)
    assert set(nothing_offered) == {"all", "irrelevance"}
    questions = [request for request in requests if request.kind == "question"]
    seen = observations(subject, questions, 0, turn=2)
    assert {o.context.split(",")[1] for o in seen} == {" turn 2"}
    assert identity_rate(subject, requests[:3], "forge").value == 0
    assert constraint_rate(subject, [r for r in requests if r.kind == "subject"], ("medicine",)).total > 0


def test_a_model_with_a_weight_that_is_no_number_is_refused(titan: TinyTitan, examples: list[Example]) -> None:
    with torch.no_grad():
        titan.embedding.weight[3, 3] = float("nan")
    with pytest.raises(NumericalError, match=r"embedding\.weight"):
        bake(titan, examples, [], _config(2), 0)


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("  ", "is empty"), ("tools " * 100_000, "tokens")])
def test_prompts_that_cannot_be_baked_are_refused(
    titan: TinyTitan, tokenizer: Tokenizer, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_prompt(text, tokenizer, titan)
