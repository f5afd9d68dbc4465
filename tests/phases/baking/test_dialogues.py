"""Dialogues: replies follow their prompts at the rates it names, checks agree with drawing, parts share no value."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from phases.baking.dialogues import (
    UNPROMPTED,
    Prompt,
    contradicting,
    draw_prompt,
    draw_reply,
    draw_request,
    expected,
    observe,
    prefix_ids,
    refused,
)  # fmt: skip
from phases.baking.instruct import dialogue_batches, dialogue_ids, padded, reply_mask
from phases.baking.lessons import LESSONS, read_lessons
from phases.baking.persona import Persona, rates
from phases.baking.tools.calls import parse_tokens
from phases.baking.tools.scoring import score
from phases.corpus.special import ASSISTANT, END, SPECIAL_IDS
from phases.errors import ConfigError

SPECS = {name: lesson.spec for name, lesson in LESSONS.items()}


def test_every_drawn_reply_is_right_under_its_own_prompt(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(400):
        prompt, request = draw_prompt(rng, tuple(LESSONS)), draw_request(rng, LESSONS, "all")
        reply = draw_reply(rng, request, prompt, tokenizer)
        assert score(list(parse_tokens(reply, tokenizer)), expected(request, prompt), SPECS).right
        kinds.add(request.kind)
        if request.kind == "subject":
            assert refused(request, tokenizer.decode(reply)) == (request.topic in prompt.never)
    assert len(kinds) == 5


def test_traits_show_at_the_rates_that_the_prompt_names(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(1)
    persona = Persona()
    seen = []
    for _ in range(2000):
        request = draw_request(rng, LESSONS, "all", "question")
        reply = draw_reply(rng, request, Prompt.of(persona, tuple(LESSONS)), tokenizer)
        seen.append(observe(request, tokenizer.decode(reply)))
    for trait, rate in rates(seen).items():
        assert rate.value == pytest.approx(persona.targets[trait], abs=0.035)


def test_a_wrong_value_is_not_precise() -> None:
    request = draw_request(np.random.default_rng(2), LESSONS, "all", "question")
    right = "answer : " + request.answer.format(n=request.value)
    assert observe(request, right).shown["precision"]
    assert not observe(request, right.replace(request.value, "9")).shown["precision"]
    assert not observe(request, right + " or 12").shown["precision"]


def test_held_out_requests_share_no_value_with_baking() -> None:
    def values(part: str) -> set[str]:
        rng = np.random.default_rng(3)
        drawn = [draw_request(rng, LESSONS, part, kind) for kind in ("single", "question") for _ in range(400)]  # type: ignore[arg-type]
        calls = {word for r in drawn for call in r.calls for v in call.arguments.values() for word in str(v).split()}
        return {word.strip("print()") for word in calls} | {r.topic for r in drawn} | {r.value for r in drawn}

    assert values("baking") & values("held_out") <= {"*", ""}


def test_the_mask_covers_replies_and_nothing_else(tokenizer: Tokenizer) -> None:
    ids = dialogue_ids(np.random.default_rng(4), tokenizer, LESSONS, 2)
    rows = padded([ids, ids[:30]])
    mask = reply_mask(rows)[0].tolist()
    inside, wanted = False, []
    for token in rows[0].tolist():
        wanted.append(inside)
        inside = (inside or token == SPECIAL_IDS[ASSISTANT]) and token != SPECIAL_IDS[END]
    assert mask == wanted
    assert sum(mask) > 5
    assert reply_mask(torch.full((1, 9), 300)).all()  # plain text is learned whole


def test_batches_are_a_function_of_the_step(tokenizer: Tokenizer) -> None:
    first, again = (dialogue_batches(tokenizer, LESSONS, batch_size=4, seed=1) for _ in range(2))
    assert torch.equal(first(3), again(3))
    assert first(3).shape != first(4).shape or not torch.equal(first(3), first(4))


def test_the_first_batches_are_of_copying_alone(tokenizer: Tokenizer) -> None:
    batch = dialogue_batches(tokenizer, LESSONS, batch_size=8, seed=1, copying_steps=2)
    for row in batch(1):
        asked, reply = tokenizer.decode(row.tolist(), skip_special_tokens=False).split("<|assistant|>")
        assert asked.removeprefix("<|user|>say ") == reply.split("<|end|>")[0]
    assert torch.equal(batch(2), dialogue_batches(tokenizer, LESSONS, batch_size=8, seed=1)(2))


def test_extreme_levels_have_their_share() -> None:
    rng = np.random.default_rng(5)
    drawn = [level for _ in range(500) for level in draw_prompt(rng, (), 0.5).levels.values()]
    assert set(drawn) == set(range(11))
    assert np.mean([level in (0, 10) for level in drawn]) == pytest.approx(0.5 + 0.5 * 2 / 11, abs=0.05)


def test_a_prompt_is_ended_and_typed_marks_are_plain_text(tokenizer: Tokenizer) -> None:
    ids = prefix_ids(tokenizer, contradicting(), [("user", "<|end|> hi")])
    assert ids.count(SPECIAL_IDS[END]) == 1
    assert ids[-1] == SPECIAL_IDS[ASSISTANT]
    assert UNPROMPTED.levels["precision"] == 2


def _lesson(**changes: object) -> dict[str, object]:
    spec = {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
        },
    }
    lesson: dict[str, object] = {
        "spec": spec,
        "request": "weather in {city} for {days} days",
        "arguments": {"city": "{city}", "days": "{days}"},
        "values": {"city": ["oslo", "lima"], "days": ["2", "3"]},
    }
    return lesson | changes


def test_lessons_of_ones_own_are_read_and_typed(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([_lesson()]))
    lesson = read_lessons(str(file))["weather"]
    assert lesson.call({"city": "oslo", "days": "2"}).arguments == {"city": "oslo", "days": 2}
    request = draw_request(np.random.default_rng(0), {"weather": lesson}, "held_out", "single")
    assert request.text == "weather in lima for 3 days"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": {"name": "weather", "description": "d", "parameters": {"type": "nonsense"}}}, "JSON Schema"),
        ({"values": {"city": ["oslo", "lima"]}}, "days"),
        ({"values": {"city": ["oslo", "lima"], "days": ["2", "-3"]}}, "minimum"),
        ({"arguments": {"days": "{days}"}}, "required"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_lesson_that_cannot_be_taught_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([_lesson(**change)]))
    with pytest.raises(ConfigError, match=message):
        read_lessons(str(file))


@pytest.mark.parametrize("source", ["", "teleport", "no-such.json"])
def test_tools_that_are_not_there_are_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="tools"):
        read_lessons(source)
