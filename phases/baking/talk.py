"""A conversation with a model whose tool calls are carried out.

A reply is text, or calls, or both; calls are found by their marks' ids (`tools/calls.py`) and run by the toolbox. The
model sees its own earlier replies, as in training; what its calls returned is for the person.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from phases.baking.dialogues import QUESTIONS
from phases.baking.lessons import TOPICS
from phases.baking.rollouts import sample_replies
from phases.baking.tools.box import ToolBox, standard_tools
from phases.baking.tools.calls import Malformed, parse_tokens
from phases.baking.tools.rag import Index
from phases.baking.tools.web import Page, fixture_engine
from phases.cognate.titan import TinyTitan
from phases.corpus.chat import Role, chat_ids
from phases.corpus.special import END, SPECIAL_IDS, SPECIAL_TOKENS, TOOL_CALL

_MAX_TOKENS = 256


@dataclass(frozen=True)
class Turn:
    """A reply: its text outside calls, and each call with its result, both as JSON."""

    text: str
    calls: list[tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "calls": [{"call": call, "result": result} for call, result in self.calls]}


@dataclass
class Talk:
    """A conversation under way."""

    model: TinyTitan
    tokenizer: Tokenizer
    box: ToolBox
    system: str | None = None
    temperature: float = 0.0
    _ids: list[int] = field(default_factory=list)  # of the turns so far
    _turns: int = 0

    def say(self, text: str) -> Turn:
        """Return the reply, with its calls carried out. The oldest turns are forgotten where no window reaches them."""
        turns: list[tuple[Role, str]] = [("user", text)]
        if self.system and not self._ids:
            turns.insert(0, ("system", self.system))
        prefix = [*self._ids, *chat_ids(self.tokenizer, turns)]
        (reply,) = sample_replies(
            self.model, [prefix], seed=self._turns, max_tokens=_MAX_TOKENS, temperature=self.temperature
        )
        self._turns += 1
        ended = [] if reply and reply[-1] == SPECIAL_IDS[END] else [SPECIAL_IDS[END]]
        self._ids = [*prefix, *reply, *ended]
        calls = list(parse_tokens(reply, self.tokenizer))
        shown = [(call.text if isinstance(call, Malformed) else call.to_json(), self.box.run(call)) for call in calls]
        return Turn(self._outside(reply), shown)

    def _outside(self, reply: list[int]) -> str:
        """Return what is said before the first call."""
        mark = SPECIAL_IDS[TOOL_CALL]
        said = reply[: reply.index(mark)] if mark in reply else reply
        return str(self.tokenizer.decode([token for token in said if token >= len(SPECIAL_TOKENS)])).strip()


@contextmanager
def tools_for(folder: Path, notes: Path | None, search_url: str | None) -> Iterator[ToolBox]:
    """Yield the three tools: over `notes` and the engine at `search_url`, or over small collections made in `folder`.

    Raises `ConfigError` where notes hold no text, or the address is none.
    """
    with ExitStack() as stack:
        if notes is not None:
            index = Index.of_folder(notes, folder / "notes.sqlite")
        else:
            index = Index.build(((topic, _note(topic)) for topic in TOPICS), folder / "notes.sqlite")
        stack.callback(index.close)
        if search_url is None:
            pages = [Page(f"About {topic}", f"http://fixture/{topic}", _note(topic)) for topic in TOPICS]
            search_url = stack.enter_context(fixture_engine(pages, folder))
        yield standard_tools(index, search_url)


def _note(topic: str) -> str:
    facts = [answer.format(t=topic, n=10 + 7 * len(topic)) for _, answer in QUESTIONS.values()]
    return f"{topic}: {' '.join(facts)}"
