"""Scoring by abstract syntax: each rule of the leaderboard, and what must not matter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases.baking.tools.calls import Malformed, ToolCall
from phases.baking.tools.scoring import Expected, normalised, score, wilson
from phases.baking.tools.spec import SPECS

WANT = Expected("rag_query", {"query": ["ternary weights"], "k": [5, 6]}, optional=frozenset({"k"}))


def call(name="rag_query", **arguments):
    return ToolCall(name, arguments)


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (call(query="ternary weights", k=5), None),
        (call(query="Ternary-Weights"), None),
        (call("web_search", query="ternary weights"), "wrong function"),
        (call(k=5), "missing parameter query"),
        (call(query="ternary weights", size=5), "unexpected parameter size"),
        (call(query="ternary weights", k="5"), "k has the wrong type"),
        (call(query="ternary weights", k=True), "k has the wrong type"),
        (call(query="ternary weights", k=7), "k has the wrong value"),
        (call(query="binary weights"), "query has the wrong value"),
        (Malformed("{", "not JSON"), "malformed"),
    ],
)
def test_one_call(made, problem):
    result = score([made], [WANT], SPECS)
    assert result.right is (problem is None)
    assert problem is None or any(problem in text for text in result.problems)


def test_a_required_parameter_is_missed_even_where_no_value_is_expected():
    assert not score([call()], [Expected("rag_query", {})], SPECS).right


def test_irrelevance_wants_no_call():
    assert score([], [], SPECS).right
    assert not score([call(query="x")], [], SPECS).right
    assert not score([], [WANT], SPECS).right


@given(st.permutations(["a", "b", "c", "d"]))
def test_parallel_calls_come_in_any_order(order):
    expected = [Expected("web_search", {"query": [word]}) for word in "abcd"]
    assert score([call("web_search", query=word) for word in order], expected, SPECS).right


def test_each_expected_call_needs_a_call_of_its_own():
    expected = [Expected("web_search", {"query": ["a", "b"]}), Expected("web_search", {"query": ["a"]})]
    assert score([call("web_search", query="a"), call("web_search", query="b")], expected, SPECS).right
    assert not score([call("web_search", query="b"), call("web_search", query="b")], expected, SPECS).right
    assert not score([call("web_search", query="a")], expected, SPECS).right
    assert not score([call("web_search", query="a")] * 3, expected, SPECS).right


def test_normalising_is_that_of_the_leaderboard():
    assert normalised("San Francisco, C.A.") == normalised("san-francisco ca")
    assert normalised("it's") == 'it"s'


def test_wilson_matches_published_values():
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 0) == (0.0, 1.0)
