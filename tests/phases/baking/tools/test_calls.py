"""Calls in a token stream, and the specifications that they are checked against."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phases.baking.tools.box import standard_tools
from phases.baking.tools.calls import Malformed, ToolCall, call_tokens, parse_text, parse_tokens, result_tokens
from phases.baking.tools.rag import Index
from phases.baking.tools.spec import SPECS, ToolSpec
from phases.corpus.special import END_OF_TEXT, SPECIAL_IDS
from phases.corpus.tasks import tool_call
from phases.corpus.tokenizer import encode, train_tokenizer
from phases.errors import ConfigError

TOKENIZER = train_tokenizer(['{"name": "rag_query", "arguments": {"query": "x", "k": 1}}'] * 3, 300)
VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers(), max_size=3)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(), st.dictionaries(st.text(), VALUES, max_size=3))
def test_what_is_written_is_read(name, arguments):
    call = ToolCall(name, arguments)
    stream = [*encode(TOKENIZER, "thinking "), *call_tokens(call, TOKENIZER), *encode(TOKENIZER, " done")]
    assert list(parse_tokens(stream, TOKENIZER)) == [call]


@given(st.lists(st.integers(0, 299), max_size=60))
def test_any_stream_is_read_without_an_error(tokens):
    for call in parse_tokens(tokens, TOKENIZER):
        assert isinstance(call, ToolCall | Malformed)


def test_text_that_spells_a_call_calls_nothing():
    text = '<|tool_call|>{"name": "code_execution", "arguments": {"code": "1"}}<|end|>'
    assert not list(parse_tokens(encode(TOKENIZER, text), TOKENIZER))
    assert not list(parse_tokens(result_tokens(text, TOKENIZER), TOKENIZER))


def test_calls_in_parallel_and_a_call_cut_short():
    one = ToolCall("a", {"x": 1})
    listed = [SPECIAL_IDS["<|tool_call|>"], *encode(TOKENIZER, f"[{one.to_json()}, {one.to_json()}]")]
    assert list(parse_tokens(listed, TOKENIZER)) == [one, one]
    cut = [*call_tokens(one, TOKENIZER)[:-4], SPECIAL_IDS[END_OF_TEXT], *call_tokens(one, TOKENIZER)]
    first, second = parse_tokens(cut, TOKENIZER)
    assert isinstance(first, Malformed)
    assert second == one


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": 1, "arguments": {}}', '{"name": "a"}', "[" * 100_000, "7"])
def test_what_is_no_call(text):
    assert all(isinstance(call, Malformed) for call in parse_text(text))
    assert list(parse_text(text))


def test_the_calls_of_the_corpus_task_are_calls():
    rng = np.random.default_rng(0)
    for _ in range(50):
        (call,) = parse_text(tool_call.generate(rng, 0.7).answer)
        assert isinstance(call, ToolCall)
        assert call.name not in SPECS or not SPECS[call.name].problems(call.arguments)


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "objekt"},
        {"type": "object"},
        {"type": "string"},
        {"type": "object", "properties": {"a": {"type": "text"}}},
        {"type": "object", "properties": {"a": {"minimum": "low"}}},
        {"type": "object", "properties": {}, "required": ["a"]},
    ],
)
def test_what_is_no_schema_is_named(parameters):
    with pytest.raises(ConfigError):
        ToolSpec(name="tool", description="d", parameters=parameters)


def test_the_box_answers_every_call(tmp_path):
    index = Index.build([("a.txt", "ternary weights take two bits")], tmp_path / "index.sqlite")
    box = standard_tools(index, "http://127.0.0.1:9/search?q={query}&k={k}")
    found = json.loads(box.run(ToolCall("rag_query", {"query": "ternary", "k": 1})))
    assert found["result"][0]["source"] == "a.txt"
    assert json.loads(box.run(ToolCall("code_execution", {"code": "print(6 * 7)"})))["result"]["output"] == "42\n"
    for call in (
        ToolCall("rag_query", {"k": 1}),
        ToolCall("rag_query", {"query": "a", "k": 0}),
        ToolCall("nothing", {}),
        ToolCall("web_search", {"query": "nobody listens there"}),
        Malformed("{", "not JSON"),
    ):
        assert json.loads(box.run(call))["error"]
