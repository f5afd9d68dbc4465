"""Generation for an endpoint: a bounded number at once, each in a thread, cancelled when nobody listens any more.

It knows tokens and text and nothing of HTTP.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer

from phases.cognate.generate import Completion, Generation, Sampling, stream
from phases.cognate.titan import TinyTitan
from phases.quietstar.generate import Think, Thoughtful, reader_for, thoughtful_stream
from phases.quietstar.loading import LoadedThinker


class Overloaded(Exception):
    """All places are taken and so is the queue."""


@dataclass
class Reply:
    """A generation: iterate over `pieces`; `result` is there when they have ended, and what `thoughtful` thought."""

    pieces: AsyncIterator[str]
    generation: Generation
    thoughtful: Thoughtful | None = None

    @property
    def result(self) -> Completion:
        assert self.generation.result is not None
        return self.generation.result


class Engine(Protocol):
    """What the HTTP layer needs."""

    tokenizer: Tokenizer

    def generate(self, prompt: list[int], sampling: Sampling, think: Think = "auto") -> Reply:
        """Begin a generation. Raises `Overloaded`, and `ConfigError` where the model cannot think as asked."""
        ...

    def check(self) -> None:
        """Raise whatever is wrong with the engine; used for readiness."""
        ...


class TorchEngine:
    """A TinyTitan in this process: `running` generations at once, `queued` more wait."""

    def __init__(
        self,
        model: TinyTitan,
        tokenizer: Tokenizer,
        *,
        thinker: LoadedThinker | None = None,
        running: int = 2,
        queued: int = 32,
    ) -> None:
        """Serve `model`; `thinker` is what thinks with it, where it has learned to."""
        self.model, self.tokenizer, self.thinker = model, tokenizer, thinker
        self._pool = ThreadPoolExecutor(running, thread_name_prefix="generate")
        self._places = asyncio.Semaphore(running)
        self._limit = running + queued
        self._accepted = 0

    def generate(self, prompt: list[int], sampling: Sampling, think: Think = "auto") -> Reply:
        """Begin a generation; nothing is computed before its first piece is asked for."""
        if self._accepted >= self._limit:
            raise Overloaded
        reader = reader_for(self.thinker, think)
        if reader is None:
            generation = stream(self.model, self.tokenizer, prompt, sampling)
        else:
            generation = thoughtful_stream(reader, prompt, sampling)
        return Reply(self._pieces(generation), generation, reader)

    def check(self) -> None:
        """Compute one token, so that a broken model is not ready."""
        for _ in stream(self.model, self.tokenizer, [0], Sampling(max_new_tokens=1, temperature=0)).pieces:
            pass

    async def _pieces(self, generation: Generation) -> AsyncIterator[str]:
        """Pull each piece in the pool; closing this iterator stops the generation at the next token."""
        loop = asyncio.get_running_loop()
        async with self._place():
            while (piece := await loop.run_in_executor(self._pool, next, generation.pieces, None)) is not None:
                yield piece

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        self._accepted += 1
        try:
            async with self._places:
                yield
        finally:
            self._accepted -= 1
