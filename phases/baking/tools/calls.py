"""Tool calls in a model's token stream: `<|tool_call|>{"name": ..., "arguments": {...}}<|end|>`.

Calls are found by the ids of the reserved tokens, never by text: plain text that spells `<|tool_call|>` is encoded as
ordinary tokens and calls nothing. Several calls follow one another, or stand in one JSON list. What opens like a call
and is none becomes a `Malformed`, so that scoring can count it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from phases.corpus.special import END, SPECIAL_IDS, TOOL_CALL, TOOL_RESULT
from phases.corpus.tokenizer import encode

_OPEN = SPECIAL_IDS[TOOL_CALL]
_MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class ToolCall:
    """A function's name and its arguments by parameter."""

    name: str
    arguments: dict[str, Any]

    def to_json(self) -> str:
        """Return the call as the corpus writes it."""
        return json.dumps({"name": self.name, "arguments": self.arguments})


@dataclass(frozen=True)
class Malformed:
    """Text between the marks of a call that is no call."""

    text: str
    problem: str


def parse_tokens(tokens: Sequence[int], tokenizer: Tokenizer) -> Iterator[ToolCall | Malformed]:
    """Yield the calls of a token stream (ids), in order. A call ends at the next special token or with the stream."""
    start: int | None = None
    for place, token in enumerate([*tokens, SPECIAL_IDS[END]]):
        if token >= len(SPECIAL_IDS):
            continue
        if start is not None:
            yield from parse_text(tokenizer.decode(list(tokens[start:place])))
        start = place + 1 if token == _OPEN else None


def parse_text(text: str) -> Iterator[ToolCall | Malformed]:
    """Yield the call, or the calls of a list, that JSON `text` holds; a `Malformed` saying why where it is none."""
    if len(text) > _MAX_CHARACTERS:
        yield Malformed(text[:100], f"longer than {_MAX_CHARACTERS} characters")
        return
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield Malformed(text, f"not JSON: {error}")
        return
    entries = parsed if isinstance(parsed, list) else [parsed]
    if not entries:
        yield Malformed(text, "an empty list")
    for entry in entries:
        yield _call(entry, text)


def _call(entry: Any, text: str) -> ToolCall | Malformed:
    if not isinstance(entry, dict) or set(entry) != {"name", "arguments"}:
        return Malformed(text, "not an object of name and arguments")
    if not isinstance(entry["name"], str) or not isinstance(entry["arguments"], dict):
        return Malformed(text, "the name is no string, or the arguments are no object")
    return ToolCall(entry["name"], entry["arguments"])


def call_tokens(call: ToolCall, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a call as a model should write it."""
    return [_OPEN, *encode(tokenizer, call.to_json()), SPECIAL_IDS[END]]


def result_tokens(result: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a tool's result as the model is shown it; whatever it spells, nothing in it is special."""
    return [SPECIAL_IDS[TOOL_RESULT], *encode(tokenizer, result), SPECIAL_IDS[END]]
