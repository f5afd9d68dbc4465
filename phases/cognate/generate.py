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


@torch.inference_mode()
def read_prompt(model: TinyTitan, ids: list[int]) -> tuple[Tensor, State]:
    """Return the logits (1, V) behind a prompt of any length, and the state."""
    tokens = torch.tensor([ids], device=model.embedding.weight.device)
    logits, state = model(tokens)
    return logits[:, -1], state


def stream(model: TinyTitan, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling) -> Generation:
    """Generate from prompt ids. Raises `ConfigError` for an empty prompt."""
    if not prompt:
        raise ConfigError.of("prompt", "", "there is nothing to continue", "give at least one character")
    generation = Generation(iter(()))
    generation.pieces = _pieces(model, tokenizer, prompt, sampling, generation)
    return generation


def complete(
    model: TinyTitan, tokenizer: Tokenizer, prompt: str, sampling: Sampling, on_text: Callable[[str], None]
) -> Completion:
    """Continue a text, calling `on_text` with each piece as it is certain."""
    generation = stream(model, tokenizer, encode(tokenizer, prompt), sampling)
    for piece in generation.pieces:
        on_text(piece)
    assert generation.result is not None
    return generation.result


@torch.inference_mode()
def greedy_matches(model: TinyTitan, prompts: list[list[int]], answers: list[list[int]]) -> list[bool]:
    """Say for each prompt whether greedy decoding gives exactly the answer's tokens and then ends.

    It does if at each place the likeliest token behind the prompt and the answer so far is the next one, which one pass
    over both shows. Rows are padded on the right, which nothing before it can see.
    """
    rows = [[*prompt, *answer, SPECIAL_IDS[END]] for prompt, answer in zip(prompts, answers, strict=True)]
    padded = torch.full((len(rows), max(map(len, rows))), SPECIAL_IDS[PAD])
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = torch.tensor(ids)
    logits, _ = model(padded[:, :-1].to(model.embedding.weight.device))
    right = logits.argmax(-1).cpu() == padded[:, 1:]
    return [
        bool(right[row, len(p) - 1 : len(ids) - 1].all())
        for row, (p, ids) in enumerate(zip(prompts, rows, strict=True))
    ]


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Return the id of the next token for `logits` (V,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.numel():
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, index = scaled.sort(descending=True)
        before = torch.softmax(ordered, 0).cumsum(0) - torch.softmax(ordered, 0)
        scaled = scaled.index_fill(0, index[before >= sampling.top_p], -torch.inf)
    return int(torch.multinomial(torch.softmax(scaled, 0), 1, generator=generator))


def _pieces(
    model: TinyTitan, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling, generation: Generation
) -> Iterator[str]:
    generator = torch.Generator().manual_seed(sampling.seed)
    logits, state = read_prompt(model, prompt)
    text = _HeldBack(tokenizer, sampling.stop)
    count, reason, steps = 0, "length", 0.0
    while count < sampling.max_new_tokens:
        token = choose(logits[0].cpu(), sampling, generator)
        count += 1
        if token in _ENDS:
            reason = "stop"
            break
        if piece := text.add(token):
            yield piece
        if text.stopped:
            reason = "stop"
            break
        if count < sampling.max_new_tokens:
            logits, state, ran = _next(model, token, state)
            steps += ran
    if piece := text.rest():
        yield piece
    generation.result = Completion(
        text=text.emitted,
        finish_reason="stop" if reason == "stop" else "length",
        prompt_tokens=len(prompt),
        completion_tokens=count,
        mean_ponder_steps=steps / max(1, count - 1),
    )


@torch.inference_mode()
def _next(model: TinyTitan, token: int, state: State) -> tuple[Tensor, State, int]:
    tokens = torch.tensor([[token]], device=model.embedding.weight.device)
    logits, steps, after = model.predict(tokens, state)
    return logits[:, -1], after, int(steps)


class _HeldBack:
    """Decoded text of which a part may have to wait."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.emitted, self.stopped = "", False
        self._ids: list[int] = []  # whose bytes may not be complete
        self._waiting = ""  # text that may be the start of a stop string

    def add(self, token: int) -> str:
        """Take a token and return the text that is now certain."""
        if token < len(SPECIAL_TOKENS):
            return ""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        if text.endswith("\ufffd") and len(self._ids) < 4:
            return ""
        self._ids = []
        self._waiting += text
        places = [place for stop in self.stop if (place := self._waiting.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._emit(min(places))
        return self._emit(len(self._waiting) - self._overlap())

    def rest(self) -> str:
        """Return what was held back, when nothing follows."""
        if self.stopped:
            return ""
        self._waiting += self.tokenizer.decode(self._ids)
        self._ids = []
        return self._emit(len(self._waiting))

    def _emit(self, length: int) -> str:
        piece, self._waiting = self._waiting[:length], self._waiting[length:]
        self.emitted += piece
        return piece

    def _overlap(self) -> int:
        """Return the length of the longest end of the waiting text that begins a stop string."""
        ends = (n for stop in self.stop for n in range(1, len(stop)) if self._waiting.endswith(stop[:n]))
        return max(ends, default=0)
