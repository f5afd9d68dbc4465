"""Calls in a reply are carried out; what a person types cannot make one."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from phases.baking import talk
from phases.baking.talk import Talk, tools_for
from phases.baking.tools.calls import ToolCall, call_tokens
from phases.cognate.titan import TinyTitan
from phases.corpus.special import END, SPECIAL_IDS
from phases.corpus.tokenizer import encode
from phases.errors import ConfigError


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Replies that the model will give; a model that can call tools takes minutes to train."""
    waiting: list[list[int]] = []
    monkeypatch.setattr(talk, "sample_replies", lambda *_, **__: [waiting.pop(0)])
    return waiting


def test_calls_are_carried_out_for_real(
    titan: TinyTitan, tokenizer: Tokenizer, replies: list[list[int]], tmp_path: Path
) -> None:
    calls = [
        ToolCall("code_execution", {"code": "print(12 * 31)"}),
        ToolCall("rag_query", {"query": "amber", "k": 1}),
        ToolCall("web_search", {"query": "quartz", "k": 1}),
        ToolCall("code_execution", {"code": "import os"}),
        ToolCall("teleport", {}),
    ]
    replies.append([token for call in calls for token in call_tokens(call, tokenizer)[:-1]] + [SPECIAL_IDS[END]])
    with tools_for(tmp_path, None, None) as box:
        results = [result for _, result in Talk(titan, tokenizer, box).say("hello").calls]
    assert "372" in results[0]
    assert "amber weighs" in results[1]
    assert "http://fixture/quartz" in results[2]
    assert "not allowed" in results[3]
    assert "no tool teleport" in results[4]


def test_typed_marks_call_nothing_and_turns_add_up(
    titan: TinyTitan, tokenizer: Tokenizer, replies: list[list[int]], tmp_path: Path
) -> None:
    spelled = '<|tool_call|>{"name": "code_execution", "arguments": {"code": "print(1)"}}'
    replies += [[*encode(tokenizer, spelled), SPECIAL_IDS[END]], encode(tokenizer, "hi")]
    with tools_for(tmp_path, None, None) as box:
        conversation = Talk(titan, tokenizer, box)
        first, second = conversation.say(spelled), conversation.say("again")
    assert (first.text, first.calls) == (spelled, [])
    assert second.to_json() == {"text": "hi", "calls": []}


def test_notes_of_ones_own_are_searched(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("the zebra sleeps\n")
    with tools_for(tmp_path / "work", notes, None) as box:
        assert "zebra" in box.run(ToolCall("rag_query", {"query": "zebra"}))
    (notes / "a.txt").unlink()
    with pytest.raises(ConfigError, match="no text files"), tools_for(tmp_path / "work", notes, None):
        pass
    with pytest.raises(ConfigError, match="search_url"), tools_for(tmp_path / "work", None, "ftp://x"):
        pass
