"""The finals: who is in them, who wins, and what an unfinished ledger says."""

from dataclasses import replace
from pathlib import Path

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
    genomes = [
        dict(plan.space.sample(numpy_rng(0, "test", number))) | {"technique": technique, "settings": "reasoning"}
        for number, technique in enumerate(["linear", "slerp", "slerp", "linear", "ties"])
    ]
    told = [Individual(genome, Outcome(fitness=1 + number)) for number, genome in enumerate(genomes)]
    return [*told, *told, Individual(plan.space.sample(numpy_rng(0, "lost")), Outcome(fitness=99, lost=True))]


def test_plain_candidates_and_the_best_of_each_kind_enter(plan: SearchPlan, everyone: list[Individual]) -> None:
    plain = [dict(plan.initial[0]) | {"settings": name} for name in ("reasoning", "adaptive", "memory")]
    found = entrants(plan, everyone)
    assert found[0] == plan.space.expressed(plan.initial[0])
    assert sorted(str(genome["settings"]) for genome in found[:3]) == ["adaptive", "memory", "reasoning"]
    assert all(plan.space.expressed(genome) in found[:3] for genome in plain)
    best = [plan.space.expressed(everyone[number].genome) for number in (4, 3)]
    assert found[3:5] == best
    assert found[5:] in (
        [plan.space.expressed(everyone[2].genome)],
        [],
    )  # of another kind where other parents are merged


def test_the_finals_decide_and_not_the_search(
    plan: SearchPlan, judge: Evaluator, everyone: list[Individual], tmp_path: Path
) -> None:
    ledger = Ledger(str(tmp_path))
    genomes = entrants(plan, everyone)
    best_parent = replace(plan.best_parent, perplexity=100.0)
    for number, genome in enumerate(genomes):
        ledger.put(judge.key(genome), replace(best_parent, perplexity=70.0 if number == 1 else 100.0 - number))
    finalists = decide(plan, judge, everyone, ledger)
    assert finalists[0].genome == genomes[1]
    assert finalists[0].fitness == pytest.approx(0.4 * 100 / 70 + 0.6)
    assert finalists[-1].genome == genomes[0]
    assert finalists[-1].fitness == pytest.approx(1)


@pytest.mark.parametrize(("lead", "plain"), [(0.004, True), (0.006, False)])
def test_a_merge_has_to_beat_the_plain_candidates_by_the_margin(
    plan: SearchPlan, judge: Evaluator, everyone: list[Individual], tmp_path: Path, lead: float, plain: bool
) -> None:
    ledger = Ledger(str(tmp_path))
    genomes = entrants(plan, everyone)
    for genome in genomes:
        better = 0.4 / (0.4 + lead) if genome is genomes[-1] else 1.0
        ledger.put(judge.key(genome), replace(plan.best_parent, perplexity=better * plan.best_parent.perplexity))
    winner, *_ = decide(plan, judge, everyone, ledger)
    assert winner.plain == plain
    assert winner.genome == (genomes[0] if plain else genomes[-1])


def test_a_lost_finalist_cannot_win_and_a_missing_one_is_named(
    plan: SearchPlan, judge: Evaluator, everyone: list[Individual], tmp_path: Path
) -> None:
    ledger = Ledger(str(tmp_path))
    *others, last = entrants(plan, everyone)
    ledger.put(judge.key(others[0]), plan.best_parent)
    for genome in others[1:]:
        ledger.put(judge.key(genome), Lost("the machine burned"))
    with pytest.raises(ArtifactError, match="finals are not finished"):
        decide(plan, judge, everyone, ledger)
    ledger.put(judge.key(last), plan.best_parent)
    assert [finalist.genome for finalist in decide(plan, judge, everyone, ledger)] == [others[0], last]
