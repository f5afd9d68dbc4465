"""The budget of a search in the benchmark."""

import pytest

from benchmarks.evomerge_search import BUDGET, QUICK_BUDGET, config_of


@pytest.mark.parametrize("budget", [BUDGET, QUICK_BUDGET])
def test_the_search_and_its_finals_spend_the_budget(budget: int) -> None:
    config = config_of(budget)
    share = config.finals.data.text_tokens // config.data.text_tokens
    finals = 2 * config.finals.entrants * share  # of the search, and as many candidates beside them
    search = 8 + 6 * (config.evolution.generations - 1)  # the first generation, then six new ones in each
    assert 0 <= budget - search - finals < 6
