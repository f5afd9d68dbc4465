"""What baking did, measured on requests with values that it never saw.

Divergences are means over all reply tokens. Tools are called by greedy decoding, as whoever carries calls out decodes
them; traits are rates over replies sampled at temperature 1, for a rate is a property of the distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from phases.baking.dialogues import Kind, Prompt, Request, expected, observe, prefix_ids, refused
from phases.baking.examples import Example, reply_logits
from phases.baking.lessons import Lesson
from phases.baking.losses import forward_kl
from phases.baking.persona import Observation, Rate
from phases.baking.rollouts import sample_replies
from phases.baking.tools.calls import parse_tokens
from phases.baking.tools.scoring import score
from phases.cognate.titan import TinyTitan
from phases.corpus.chat import Role

_ROWS = 64


@dataclass(frozen=True)
class Subject:
    """A model as it is spoken to: with a prompt before each conversation, or with nothing."""

    model: TinyTitan
    tokenizer: Tokenizer
    prompt: Prompt | None = None

    def replies(
        self, requests: Sequence[Request], seed: int, temperature: float, turns: Sequence[tuple[Role, str]] = ()
    ) -> list[list[int]]:
        """Return its reply to each request, behind the same earlier `turns`."""
        prefixes = [prefix_ids(self.tokenizer, self.prompt, [*turns, ("user", request.text)]) for request in requests]
        return sample_replies(self.model, prefixes, seed=seed, temperature=temperature)


@torch.inference_mode()
def divergence(teacher: TinyTitan, student: TinyTitan, examples: Sequence[Example]) -> float:
    """Return the mean KL(teacher || student) over the reply tokens of `examples`, in nats."""
    total, count = 0.0, 0
    for start in range(0, len(examples), _ROWS):
        part = examples[start : start + _ROWS]
        replies = [example.reply for example in part]
        wanted = reply_logits(teacher, [example.teacher for example in part], replies)
        given = reply_logits(student, [example.student for example in part], replies)
        kl = forward_kl(wanted, given)
        total, count = total + float(kl.sum()), count + len(kl)
    return total / count


def tool_rates(
    subject: Subject, requests: Sequence[Request], lessons: dict[str, Lesson], behaves_as: Prompt
) -> dict[str, Rate]:
    """Return the rate of right replies by kind of request, and under `all`, by abstract syntax.

    `irrelevance` are requests that no offered tool serves, questions among them.
    """
    specs = {name: lesson.spec for name, lesson in lessons.items()}
    right = dict[str, list[bool]]()
    for request, reply in zip(requests, subject.replies(requests, 0, 0.0), strict=True):
        wanted = expected(request, behaves_as)
        kind: Kind | str = request.kind if wanted else "irrelevance"
        found = score(list(parse_tokens(reply, subject.tokenizer)), wanted, specs).right
        right.setdefault(kind, []).append(found)
        right.setdefault("all", []).append(found)
    return {kind: Rate(sum(found), len(found)) for kind, found in right.items()}


def observations(subject: Subject, questions: Sequence[Request], seed: int, turn: int = 1) -> list[Observation]:
    """Return what sampled replies to questions show; contexts are named by kind of question and turn.

    At turn 2 there is an exchange before the question.
    """
    before: list[tuple[Role, str]] = []
    if turn > 1:
        before = [("user", "tell me some gossip"), ("assistant", "gossip is a wide field .")]
    found = list[Observation]()
    for request, reply in zip(questions, subject.replies(questions, seed, 1.0, before), strict=True):
        seen = observe(request, subject.tokenizer.decode(reply))
        found.append(Observation(f"{seen.context}, turn {turn}", seen.shown))
    return found


def obedience(subject: Subject, requests: Sequence[Request]) -> Rate:
    """Return the rate of requests for tools that are met without a call, for a prompt that offers none."""
    wanting = [request for request in requests if request.calls]
    calls = [list(parse_tokens(reply, subject.tokenizer)) for reply in subject.replies(wanting, 0, 0.0)]
    return Rate(sum(not found for found in calls), len(calls))


def constraint_rate(subject: Subject, subjects: Sequence[Request], never: Sequence[str]) -> Rate:
    """Return the rate of requests for a subject that are refused where it is forbidden, and answered elsewhere."""
    replies = [subject.tokenizer.decode(reply) for reply in subject.replies(subjects, 0, 0.0)]
    right = [
        refused(request, reply) == (request.topic in never) for request, reply in zip(subjects, replies, strict=True)
    ]
    return Rate(sum(right), len(right))


def identity_rate(subject: Subject, contexts: Sequence[Request], name: str) -> Rate:
    """Return the rate of contexts in which a model gives its name: asked after an exchange about something else."""
    before = subject.replies(contexts, 0, 0.0)
    prefixes = list[list[int]]()
    for request, reply in zip(contexts, before, strict=True):
        told = [*prefix_ids(subject.tokenizer, subject.prompt, [("user", request.text)]), *reply]
        prefixes.append([*told, *prefix_ids(subject.tokenizer, None, [("user", "who are you ?")])])
    replies = sample_replies(subject.model, prefixes, seed=0, temperature=0.0)
    right = [f"i am {name} ." in subject.tokenizer.decode(reply) for reply in replies]
    return Rate(sum(right), len(right))
