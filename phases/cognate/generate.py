"""Text from a TinyTitan, token by token, with the state as its cache.

`stream` yields text as soon as it is certain: a character whose bytes are not complete, and a suffix that might become
a stop string, are held back. `greedy_matches` checks many answers at once, for measuring tasks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import BaseModel, Field
from tokenizers import Tokenizer
from torch import Tensor

from phases.cognate.state import State
from phases.cognate.titan import TinyTitan
from phases.corpus.special import END, END_OF_TEXT, PAD, SPECIAL_IDS, SPECIAL_TOKENS
from phases.corpus.tokenizer import encode
from phases.errors import ConfigError
from phases.settings import Settings

_ENDS = (SPECIAL_IDS[END], SPECIAL_IDS[END_OF_TEXT])
_ROWS = 64  # prompts that are read at once


class Sampling(Settings):
    """How the next token is chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in."""

    max_new_tokens: int = Field(default=128, ge=1, le=1_000_000)
    temperature: float = Field(default=0.8, ge=0, le=10)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: tuple[str, ...] = Field(default=(), max_length=16, description="generation stops before any of these texts")
    seed: int = Field(default=0, ge=0, lt=2**63)


class Completion(BaseModel):
    """A finished generation."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    mean_ponder_steps: float


@dataclass
class Generation:
    """A generation under way; `result` is there when `pieces` has ended."""

    pieces: Iterator[str]
    result: Completion | None = field(default=None)


ReadOn = Callable[[TinyTitan, list[int], State], tuple[Tensor, int]]


@torch.inference_mode()
def read_on(model: TinyTitan, ids: list[int], state: State) -> tuple[Tensor, int]:
    """Read on and return the logits (V,) of the next token and the ponder steps that they took."""
    reading = model.read(torch.tensor([ids], device=model.embedding.weight.device), state)
    assert state.prediction is not None
    return state.prediction[0].cpu(), int(reading.steps[0, -1])


def stream(
    model: TinyTitan, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling, reader: ReadOn = read_on
) -> Generation:
    """Generate from prompt ids; `reader` may revise the logits. Raises `ConfigError` for an empty prompt."""
    if not prompt:
        raise ConfigError.of("prompt", "", "there is nothing to continue", "give at least one character")
    generation = Generation(iter(()))
    generation.pieces = _pieces(model, tokenizer, prompt, sampling, generation, reader)
    return generation


def complete(
    model: TinyTitan,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    on_text: Callable[[str], None],
    reader: ReadOn = read_on,
) -> Completion:
    """Continue a text, calling `on_text` with each piece as it is certain; `reader` may revise the logits."""
    generation = stream(model, tokenizer, encode(tokenizer, prompt), sampling, reader)
    for piece in generation.pieces:
        on_text(piece)
    assert generation.result is not None
    return generation.result


def greedy_matches(model: TinyTitan, prompts: list[list[int]], answers: list[list[int]]) -> list[bool]:
    """Say for each prompt whether greedy decoding gives exactly the answer's tokens and then ends.

    It does if at each place the likeliest token behind the prompt and the answer so far is the next one, which one pass
    over both shows.
    """
    return [all(right) for right in right_tokens(model, prompts, answers)]


@torch.inference_mode()
def right_tokens(model: TinyTitan, prompts: list[list[int]], answers: list[list[int]]) -> list[list[bool]]:
    """Say for each token of each answer, the end included, whether it is the likeliest behind what comes before it.

    Rows of like length are read together, padded on the right, which nothing before it can see.
    """
    rows = [[*prompt, *answer, SPECIAL_IDS[END]] for prompt, answer in zip(prompts, answers, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    right = dict[int, list[bool]]()
    for start in range(0, len(rows), _ROWS):
        chosen = order[start : start + _ROWS]
        padded = torch.full((len(chosen), max(len(rows[i]) for i in chosen)), SPECIAL_IDS[PAD])
        for place, i in enumerate(chosen):
            padded[place, : len(rows[i])] = torch.tensor(rows[i])
        outputs = model.read(padded[:, :-1].to(model.embedding.weight.device)).outputs
        for output, i in zip(outputs, chosen, strict=True):
            answered = len(prompts[i])
            likeliest = (output[answered - 1 : len(rows[i]) - 1] @ model.head_weight.T).argmax(-1).tolist()
            right[i] = [a == b for a, b in zip(likeliest, rows[i][answered:], strict=True)]
    return [right[i] for i in range(len(rows))]


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Return the id of the next token for `logits` (V,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = (logits.float() - logits.max()) / sampling.temperature  # at most 0, however small the temperature
    if 0 < sampling.top_k < scaled.numel():
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, index = scaled.sort(descending=True)
        before = torch.softmax(ordered, 0).cumsum(0) - torch.softmax(ordered, 0)
        scaled = scaled.index_fill(0, index[before >= sampling.top_p], -torch.inf)
    return int(torch.multinomial(torch.softmax(scaled, 0), 1, generator=generator))


def _pieces(
    model: TinyTitan,
    tokenizer: Tokenizer,
    prompt: list[int],
    sampling: Sampling,
    generation: Generation,
    reader: ReadOn,
) -> Iterator[str]:
    generator = torch.Generator().manual_seed(sampling.seed)
    text = _HeldBack(tokenizer, sampling.stop)
    finish_reason: Literal["stop", "length"] = "length"
    unread, state, steps = prompt, model.empty_state(1), list[int]()
    while len(steps) < sampling.max_new_tokens:
        logits, ran = reader(model, unread, state)
        steps.append(ran)
        token = choose(logits, sampling, generator)
        unread = [token]
        if token not in _ENDS and (piece := text.add(token)):
            yield piece
        if token in _ENDS or text.stopped:
            finish_reason = "stop"
            break
    if piece := text.rest():
        yield piece
    generation.result = Completion(
        text=text.emitted,
        finish_reason=finish_reason,
        prompt_tokens=len(prompt),
        completion_tokens=len(steps),
        mean_ponder_steps=sum(steps) / len(steps),
    )


class _HeldBack:
    """Decoded text of which a part may have to wait."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.emitted, self.stopped = "", False
        self._ids: list[int] = []  # since the last place where all characters were complete
        self._taken = 0  # characters of theirs that were taken
        self._waiting = ""  # text that may be the start of a stop string

    def add(self, token: int) -> str:
        """Take a token and return the text that is now certain."""
        if token < len(SPECIAL_TOKENS):
            return ""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        # Only the last character can be one whose bytes are still to come; others that are invalid stay so.
        incomplete = text.endswith("\ufffd")
        self._take(text[:-1] if incomplete else text)
        if not incomplete:
            self._ids, self._taken = [], 0
        places = [place for stop in self.stop if (place := self._waiting.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._emit(min(places))
        return self._emit(len(self._waiting) - self._overlap())

    def rest(self) -> str:
        """Return what was held back, when nothing follows."""
        if self.stopped:
            return ""
        self._take(self.tokenizer.decode(self._ids))
        return self._emit(len(self._waiting))

    def _take(self, text: str) -> None:
        """Let the part of the undecided tokens' `text` that is new wait."""
        self._waiting += text[self._taken :]
        self._taken = len(text)

    def _emit(self, length: int) -> str:
        piece, self._waiting = self._waiting[:length], self._waiting[length:]
        self.emitted += piece
        return piece

    def _overlap(self) -> int:
        """Return the length of the longest end of the waiting text that begins a stop string."""
        ends = (n for stop in self.stop for n in range(1, len(stop)) if self._waiting.endswith(stop[:n]))
        return max(ends, default=0)
