"""The finals: who is in them, who wins, and what an unfinished ledger says."""

from dataclasses import replace

import pytest

from phases.errors import ArtifactError
from phases.evomerge.candidate import Parents, Positions
from phases.evomerge.config import EvoMergeConfig
from phases.evomerge.engine import Individual, Outcome
from phases.evomerge.evaluate import Evaluator
from phases.evomerge.finals import decide, entrants
from phases.evomerge.fitness import FitnessRows
from phases.evomerge.genome import first_genomes, identity, merge_space
from phases.evomerge.ledger import Ledger, Lost
from phases.evomerge.search import SearchPlan
from phases.seeds import numpy_rng


@pytest.fixture(scope="module")
def judge(parents: Parents, rows: FitnessRows) -> Evaluator:
    return Evaluator(parents, rows, seed=0, guard=4.0, fingerprint="finals")


@pytest.fixture(scope="module")
def plan(judge: Evaluator) -> SearchPlan:
    config = EvoMergeConfig.model_validate({"finals": {"entrants": 3}})
    names = judge.parents.names
    measured = judge.measure(identity(names, names[0]), Positions(judge.parents, 0))
    return SearchPlan(
        config=config,
        space=merge_space(config, names, judge.parents.n_layers),
        initial=tuple(first_genomes(config, names, names[0], judge.parents.n_layers)),
        seed=0,
        best_parent=measured,
        answer_tokens=judge.rows.answer_tokens,
    )


@pytest.fixture(scope="module")
def everyone(plan: SearchPlan) -> list[Individual]:
    """Random candidates whose fitness in the search grows, each twice, and a lost one that was the best."""
    genomes = [plan.space.sample(numpy_rng(0, "test", number)) for number in range(6)]
    told = [Individual(genome, Outcome(fitness=1 + number)) for number, genome in enumerate(genomes)]
    return [*told, *told, Individual(plan.space.sample(numpy_rng(0, "lost")), Outcome(fitness=99, lost=True))]


def test_the_best_parent_and_the_best_distinct_candidates_enter(plan: SearchPlan, everyone: list[Individual]) -> None:
    expected = [plan.initial[0], *(everyone[number].genome for number in (5, 4, 3))]
    assert entrants(plan, everyone) == [plan.space.expressed(genome) for genome in expected]


def test_the_finals_decide_and_not_the_search(
    plan: SearchPlan, judge: Evaluator, everyone: list[Individual], tmp_path: object
) -> None:
    ledger = Ledger(str(tmp_path))
    genomes = entrants(plan, everyone)
    best_parent = replace(plan.best_parent, perplexity=100.0)
    for genome, perplexity in zip(genomes, (100.0, 90.0, 70.0, 80.0), strict=True):
        ledger.put(judge.key(genome), replace(best_parent, perplexity=perplexity))
    finalists = decide(plan, judge, everyone, ledger)
    assert [finalist.genome for finalist in finalists] == [genomes[i] for i in (2, 3, 1, 0)]
    assert finalists[0].fitness == pytest.approx(0.4 * 100 / 70 + 0.6)
    assert finalists[-1].fitness == pytest.approx(1)
    assert finalists[0].search_fitness == 5


def test_a_lost_finalist_cannot_win_and_a_missing_one_is_named(
    plan: SearchPlan, judge: Evaluator, everyone: list[Individual], tmp_path: object
) -> None:
    ledger = Ledger(str(tmp_path))
    first, second, third, fourth = entrants(plan, everyone)
    for genome in (first, second):
        ledger.put(judge.key(genome), plan.best_parent)
    ledger.put(judge.key(third), Lost("the machine burned"))
    with pytest.raises(ArtifactError, match="finals are not finished"):
        decide(plan, judge, everyone, ledger)
    ledger.put(judge.key(fourth), plan.best_parent)
    assert third not in [finalist.genome for finalist in decide(plan, judge, everyone, ledger)]
