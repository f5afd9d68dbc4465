"""Replies behind prefixes, for one model that reads a prompt and another that may not.

An `Example` is a reply with the two prefixes that it is judged behind: the teacher's, and the student's, which is the
same conversation without the prompt (baking) or with it (retention).

Shapes: B examples, T tokens of the longest prefix and reply, N tokens of all replies together, D model width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from phases.baking.dialogues import Prompt, Request, draw_prompt, draw_request, prefix_ids
from phases.baking.instruct import padded
from phases.baking.lessons import Lesson, Part
from phases.baking.rollouts import sample_replies
from phases.cognate.titan import TinyTitan
from phases.corpus.chat import Role
from phases.errors import ConfigError
from phases.seeds import child_seed, numpy_rng

REPLY_ROOM = 48  # tokens that a reply needs at least
_ROWS = 64


@dataclass(frozen=True)
class Example:
    """Token ids."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    reply: tuple[int, ...]


def draw_requests(lessons: Mapping[str, Lesson], part: Part, count: int, seed: int, *names: str) -> list[Request]:
    """Return requests, the same for the same arguments."""
    rng = numpy_rng(seed, "requests", part, *names)
    return [draw_request(rng, lessons, part) for _ in range(count)]


def baking_examples(
    teacher: TinyTitan, tokenizer: Tokenizer, prompt: Prompt, requests: Sequence[Request], seed: int
) -> list[Example]:
    """Return what a teacher replies under a prompt, for a student that does not get it."""
    asked: list[list[tuple[Role, str]]] = [[("user", request.text)] for request in requests]
    pairs = [(prefix_ids(tokenizer, prompt, turns), prefix_ids(tokenizer, None, turns)) for turns in asked]
    return _sampled(teacher, pairs, child_seed(seed, "baking examples"))


def retention_examples(
    teacher: TinyTitan,
    tokenizer: Tokenizer,
    lessons: Mapping[str, Lesson],
    requests: Sequence[Request],
    baked: Prompt,
    seed: int,
) -> list[Example]:
    """Return what a teacher replies under other prompts, for a student that gets them, too."""
    rng, pairs = numpy_rng(seed, "retention prompts"), list[tuple[list[int], list[int]]]()
    for request in requests:
        while (prompt := draw_prompt(rng, tuple(lessons))) == baked:
            pass
        prefix = prefix_ids(tokenizer, prompt, [("user", request.text)])
        pairs.append((prefix, prefix))
    return _sampled(teacher, pairs, child_seed(seed, "retention examples"))


def under(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with the teacher's prefix for the student, too."""
    return [replace(example, student=example.teacher) for example in examples]


def _sampled(teacher: TinyTitan, pairs: Sequence[tuple[list[int], list[int]]], seed: int) -> list[Example]:
    replies = sample_replies(teacher, [prefix for prefix, _ in pairs], seed=seed)
    return [Example(tuple(a), tuple(b), tuple(reply)) for (a, b), reply in zip(pairs, replies, strict=True)]


def check_prompt(text: str, tokenizer: Tokenizer, model: TinyTitan, field: str = "prompt") -> None:
    """Raise `ConfigError` where a prompt is empty, or so long that a reply would no longer see all of it."""
    if not text.strip():
        raise ConfigError.of(field, text, "is empty", "say what is to be baked")
    tokens, room = len(prefix_ids(tokenizer, None, [("system", text)])), 2 * model.config.segment_len - REPLY_ROOM
    if tokens > room:
        fix = f"use at most {room}: attention reaches over {2 * model.config.segment_len} tokens, reply included"
        raise ConfigError.of(field, f"{text[:40]}...", f"is {tokens} tokens", fix)


def reply_outputs(model: TinyTitan, prefixes: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> Tensor:
    """Return the model's outputs (N, D) from which the tokens of the replies are predicted, in order.

    With gradients as training computes them, without as inference does; both see the same.
    """
    rows = padded([[*prefix, *reply] for prefix, reply in zip(prefixes, replies, strict=True)])
    rows = rows.to(model.embedding.weight.device)
    if torch.is_grad_enabled():
        outputs = torch.cat([segment.outputs for segment in model.segments(rows, supervised=False)], dim=1)
    else:
        outputs = model.read(rows[:, :-1]).outputs
    places = [
        (row, len(prefix) - 1 + n)
        for row, (prefix, reply) in enumerate(zip(prefixes, replies, strict=True))
        for n in range(len(reply))
    ]
    row, column = torch.tensor(places, device=rows.device).T
    return outputs[row, column]


@torch.no_grad()
def reply_outputs_each(model: TinyTitan, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
    """Return the outputs (T, D) of each pair of a prefix and a reply, those of a length computed together."""
    order = sorted(range(len(pairs)), key=lambda number: sum(map(len, pairs[number])))
    outputs = dict[int, Tensor]()
    for start in range(0, len(order), _ROWS):
        numbers = order[start : start + _ROWS]
        prefixes, replies = zip(*(pairs[number] for number in numbers), strict=True)
        found = reply_outputs(model, prefixes, replies).split([len(reply) for reply in replies])
        outputs |= dict(zip(numbers, found, strict=True))
    return [outputs[number] for number in range(len(pairs))]


def reply_logits(model: TinyTitan, prefixes: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits (N, V) of the replies' tokens."""
    return reply_outputs(model, prefixes, replies) @ model.head_weight.T
