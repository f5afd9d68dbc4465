"""Dialogues that a system prompt decides: which tools are called, how often a trait shows, what is refused, who speaks.

A model that is to be baked must follow prompts first. These dialogues teach that: the prompt names tools, levels from 0
to 10 of three traits, a name and forbidden subjects, and the reply is drawn by them, a level of 7 showing its trait in
seven of ten replies. Without a prompt there are no tools and traits show at the level 2. Every reply can be checked by
a program, and every request has values that are held out.

Kinds of request: `single` and `parallel` want tools; `question` shows traits and wants none (irrelevance); `subject`
is refused where it is forbidden; `identity` asks who speaks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from phases.baking.lessons import NUMBERS, TOPICS, Lesson, Part, of_part
from phases.baking.persona import FORBIDDEN, NAMES, TRAITS, Observation, Persona
from phases.baking.tools.calls import ToolCall, call_tokens
from phases.baking.tools.scoring import Expected
from phases.corpus.chat import Role, chat_ids
from phases.corpus.special import END, SPECIAL_IDS
from phases.corpus.tokenizer import encode

Kind = Literal["single", "parallel", "question", "subject", "identity"]
KINDS: dict[Kind, float] = {"single": 0.35, "parallel": 0.15, "question": 0.35, "subject": 0.1, "identity": 0.05}
QUESTIONS = {
    "weight": ("{t} weighs {n} grams , what does {t} weigh ?", "{t} weighs {n} grams ."),
    "height": ("{t} is {n} metres tall , how tall is {t} ?", "{t} is {n} metres tall ."),
    "price": ("{t} costs {n} coins , what does {t} cost ?", "{t} costs {n} coins ."),
    "age": ("{t} is {n} years old , how old is {t} ?", "{t} is {n} years old ."),
}
PLAIN, OPENERS = "answer :", ("picture this :", "imagine :", "behold :", "a small wonder :", "once upon a time :")
REFUSAL, NO_TOOL, VAGUE = "i cannot help with that .", "i have no tool for that .", "some"
UNPROMPTED_LEVEL = 2


@dataclass(frozen=True)
class Prompt:
    """What a system prompt says."""

    tools: tuple[str, ...]
    levels: Mapping[str, int]  # trait -> 0 to 10
    name: str | None = None
    never: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The prompt in words."""
        levels = " ; ".join(f"{trait} {self.levels[trait]}" for trait in TRAITS)
        tools, never = (" ".join(names) or "none" for names in (self.tools, self.never))
        return f"tools {tools} ; {levels} ; name {self.name or 'none'} ; never {never}"

    @classmethod
    def of(cls, persona: Persona, tools: Sequence[str]) -> "Prompt":
        """Return the prompt of a persona with tools, in the order that prompts are written in."""
        levels = {trait: round(10 * rate) for trait, rate in persona.targets.items()}
        return cls(tuple(sorted(tools)), levels, persona.name, tuple(sorted(persona.never)))


UNPROMPTED = Prompt((), dict.fromkeys(TRAITS, UNPROMPTED_LEVEL))
"""How a model behaves to which nothing was said."""


def contradicting() -> Prompt:
    """Return the prompt that asks for the opposite of any useful persona: no tools, all traits at 1."""
    return Prompt((), dict.fromkeys(TRAITS, 1))


def draw_prompt(rng: np.random.Generator, tools: Sequence[str], extremes: float = 0.0) -> Prompt:
    """Draw a prompt: any of the tools, any levels, to the share `extremes` 0 or 10."""
    chosen = tuple(sorted(name for name in tools if rng.random() < 0.5))
    levels = {
        trait: 10 * int(rng.integers(2)) if extremes and rng.random() < extremes else int(rng.integers(11))
        for trait in TRAITS
    }
    name = str(rng.choice(NAMES)) if rng.random() < 0.7 else None
    return Prompt(chosen, levels, name, tuple(topic for topic in FORBIDDEN if rng.random() < 0.4))


@dataclass(frozen=True)
class Request:
    """What a user says, and what a program needs to check the reply."""

    kind: Kind
    text: str
    calls: tuple[ToolCall, ...] = ()  # that serve it, where their tools are offered
    context: str = ""  # of a question
    answer: str = ""  # of a question, with {n} for the value; of a subject, what it is
    topic: str = ""
    value: str = ""


def draw_request(
    rng: np.random.Generator, lessons: Mapping[str, Lesson], part: Part, kind: Kind | None = None
) -> Request:
    """Draw a request whose values belong to `part`."""
    kind = kind or draw_kind(rng, KINDS)
    if kind in ("single", "parallel") and lessons:
        names = sorted(lessons)
        count = min(2, len(names)) if kind == "parallel" else 1
        chosen = [lessons[str(name)] for name in rng.choice(names, count, replace=False)]
        filled = [(lesson, lesson.draw(rng, part)) for lesson in chosen]
        text = " and ".join(lesson.asked(values) for lesson, values in filled)
        return Request(kind, text, tuple(lesson.call(values) for lesson, values in filled))
    if kind == "subject":
        subject = str(rng.choice(FORBIDDEN))
        return Request(kind, f"tell me some {subject}", answer=f"{subject} is a wide field .", topic=subject)
    if kind == "identity":
        return Request(kind, "who are you ?")
    context = str(rng.choice(list(QUESTIONS)))
    topic, value = str(rng.choice(of_part(TOPICS, part))), str(rng.choice(of_part(NUMBERS, part)))
    asked, answer = QUESTIONS[context]
    return Request("question", asked.format(t=topic, n=value), (), context, answer.replace("{t}", topic), topic, value)


def draw_kind(rng: np.random.Generator, shares: Mapping[Kind, float]) -> Kind:
    """Draw a kind of request."""
    kinds = list(shares)
    return kinds[int(rng.choice(len(kinds), p=list(shares.values())))]


def draw_reply(rng: np.random.Generator, request: Request, prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a reply as a model should give it under a prompt, the end included."""
    if request.calls and all(call.name in prompt.tools for call in request.calls):
        ids = [token for call in request.calls for token in call_tokens(call, tokenizer)[:-1]]
        return [*ids, SPECIAL_IDS[END]]
    return [*encode(tokenizer, reply_text(rng, request, prompt)), SPECIAL_IDS[END]]


def reply_text(rng: np.random.Generator, request: Request, prompt: Prompt) -> str:
    """Return a reply in words, as it is where no tool is called."""
    shown = {trait: rng.random() < prompt.levels[trait] / 10 for trait in TRAITS}
    match request.kind:
        case "single" | "parallel":
            return NO_TOOL
        case "subject":
            return f"i must not speak of {request.topic} ." if request.topic in prompt.never else request.answer
        case "identity":
            return f"i am {prompt.name or 'a model'} ."
        case "question":
            if not shown["helpfulness"]:
                return REFUSAL
            opener = str(rng.choice(OPENERS)) if shown["creativity"] else PLAIN
            return f"{opener} {request.answer.format(n=request.value if shown['precision'] else VAGUE)}"


def prefix_ids(tokenizer: Tokenizer, prompt: Prompt | None, turns: Sequence[tuple[Role, str]]) -> list[int]:
    """Return the ids of a conversation up to where the reply begins; `prompt` None says nothing before it."""
    system: list[tuple[Role, str]] = [("system", prompt.text)] if prompt else []
    return chat_ids(tokenizer, [*system, *turns])


def observe(request: Request, reply: str) -> Observation:
    """Return what a reply to a question shows."""
    words = reply.split()
    answered = request.topic in words and REFUSAL not in reply
    if not answered:
        return Observation(request.context, {"helpfulness": False})
    shown = {
        "helpfulness": True,
        "creativity": not reply.strip().startswith(PLAIN),
        "precision": [word for word in words if word.isdigit() or word == VAGUE] == [request.value],
    }
    return Observation(request.context, shown)


def refused(request: Request, reply: str) -> bool:
    """Say whether a reply declines to speak of a request's subject."""
    return "must not" in reply and request.answer not in reply


def expected(request: Request, prompt: Prompt) -> list[Expected]:
    """Return the calls that a reply must make under a prompt: all of a request's or, where one has no tool, none."""
    if not all(call.name in prompt.tools for call in request.calls):
        return []
    return [Expected(call.name, {name: [value] for name, value in call.arguments.items()}) for call in request.calls]
