"""rag_query and web_search: ranking against the formula, and queries and answers that mean harm."""

import math
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.baking.tools.rag import Index, passages
from phases.baking.tools.web import Page, SearchError, fixture_engine, search
from phases.errors import ArtifactError, ConfigError

DOCUMENTS = {"a": "red fox", "b": "red red deer with a long tail", "c": "blue whale", "d": "green sea", "e": "grey owl"}


def build(tmp_path):
    return closing(Index.build(DOCUMENTS.items(), tmp_path / "index.sqlite"))


def test_scores_are_bm25(tmp_path):
    lengths = {name: len(text.split()) for name, text in DOCUMENTS.items()}
    mean = sum(lengths.values()) / len(lengths)
    idf = math.log((5 - 2 + 0.5) / (2 + 0.5))  # two of five have the word
    with build(tmp_path) as index:
        for found in index.search("red"):
            count = DOCUMENTS[found.source].split().count("red")
            expected = idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * lengths[found.source] / mean))
            assert found.score == pytest.approx(expected)


def test_the_best_come_first_and_a_word_that_is_nowhere_does_no_harm(tmp_path):
    with build(tmp_path) as index:
        assert [found.source for found in index.search("blue zebra whales", 2)] == ["c"]
        assert index.search("zebra") == []
        assert len(index.search("red", 1)) == 1


@settings(max_examples=50, deadline=None)
@given(query=st.text())
def test_no_query_is_an_error(tmp_path_factory, query):
    with build(tmp_path_factory.mktemp("index")) as index:
        index.search(query)


def test_operators_are_words(tmp_path):
    with build(tmp_path) as index:
        assert index.search('"fox" NOT red* OR text:x) --')[0].source == "a"


@given(st.text())
def test_passages_keep_every_word(text):
    assert (
        "".join(passages(text)).split() == text.split()
        or [word for part in passages(text) for word in part.split()] == text.split()
    )


def test_a_folder_is_indexed(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "x.md").write_text("actors restart")
    with closing(Index.of_folder(tmp_path / "docs", tmp_path / "i.sqlite")) as index:
        assert index.search("restarting")[0].source == "x.md"
    with pytest.raises(ConfigError, match="no text files"):
        Index.of_folder(tmp_path / "none", tmp_path / "j.sqlite")
    with pytest.raises(ArtifactError, match=r"j\.sqlite"):
        Index(tmp_path / "j.sqlite")


def test_the_engine_of_fixtures_answers_over_http(tmp_path):
    pages = [Page(f"Title {name}", f"https://example.org/{name}", text) for name, text in DOCUMENTS.items()]
    with fixture_engine(pages, tmp_path) as template:
        assert search("whale & sea?", 3, template)[0].url in {"https://example.org/c", "https://example.org/d"}
        assert search("zebra", 3, template) == []
        assert len(search("red", 1, template)) == 1
    with pytest.raises(SearchError, match=r"127\.0\.0\.1"):
        search("red", 1, template)


@pytest.mark.parametrize("template", ["file:///etc/passwd?{query}", "https://host/search", "host?q={query}"])
def test_templates_that_are_none(template):
    with pytest.raises(ConfigError):
        search("a", 1, template)
