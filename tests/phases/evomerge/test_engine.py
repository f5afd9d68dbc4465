"""The search: deterministic whatever the order of outcomes, resumable at any point, and it finds optima."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.errors import ConfigError
from phases.evomerge.engine import Candidate, EvoEngine, EvolutionConfig, Outcome
from phases.evomerge.operators import crossover, mutate
from phases.evomerge.pareto import crowding, fronts, ranking
from phases.evomerge.space import Choice, Real, Space, real_space

SPACE = Space(
    (
        Choice("technique", ("a", "b")),
        Real("x", -1, 1),
        Real("only_a", 0, 1, frozenset({"a"})),
        Choice("only_b", (1, 2, 3), frozenset({"b"})),
    ),
    switch="technique",
)


def fitness(candidate: Candidate) -> Outcome:
    genome = candidate.genome
    bonus = float(genome["only_a"]) if genome["technique"] == "a" else 0.1 * float(genome["only_b"])
    value = bonus - (float(genome["x"]) - 0.3) ** 2
    return Outcome(fitness=value, objectives=(-value,), position=(float(genome["x"]), bonus))


def search(engine: EvoEngine, order: np.random.Generator | None = None, stop_after: int | None = None) -> int:
    told = 0
    while candidates := engine.ask():
        if order is not None:
            order.shuffle(candidates)  # type: ignore[arg-type]
        for candidate in candidates:
            engine.tell(candidate.slot, fitness(candidate))
            told += 1
            if told == stop_after:
                return told
    return told


def test_the_documented_run_takes_302_evaluations_and_finds_the_optimum() -> None:
    engine = EvoEngine(SPACE, EvolutionConfig(patience=None), seed=1)
    assert search(engine) == 8 + 49 * 6
    assert len(engine.history) == 50
    assert engine.best is not None
    assert engine.best.outcome.fitness > 0.99
    best = [generation.best_fitness for generation in engine.history]
    assert best == sorted(best)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(1, 100))
def test_neither_order_nor_interruption_changes_the_result(seed: int, stop: int) -> None:
    config = EvolutionConfig(generations=15, patience=None, adaptive=True)
    straight, shuffled = EvoEngine(SPACE, config, seed), EvoEngine(SPACE, config, seed)
    search(straight)
    search(shuffled, np.random.default_rng(seed), stop)
    resumed = EvoEngine(SPACE, config, seed)
    resumed.load(json.loads(json.dumps(shuffled.state())))
    search(resumed, np.random.default_rng(stop))
    assert resumed.state() == straight.state()


def test_patience_stops_a_search_that_gains_nothing() -> None:
    engine = EvoEngine(SPACE, EvolutionConfig(patience=5), seed=0)
    while candidates := engine.ask():
        for candidate in candidates:
            engine.tell(candidate.slot, Outcome(fitness=1.0))
    assert len(engine.history) == 6
    assert engine.history[-1].stale == 5


def test_lost_candidates_never_win_and_never_stop_the_search() -> None:
    engine = EvoEngine(SPACE, EvolutionConfig(generations=6, patience=None), seed=0)
    while candidates := engine.ask():
        for candidate in candidates:
            bad = candidate.slot % 2 == 0
            engine.tell(candidate.slot, Outcome(fitness=float("nan")) if bad else fitness(candidate))
    assert engine.best is not None
    assert np.isfinite(engine.best.outcome.fitness)
    assert engine.history[0].lost == 4


def test_all_lost_still_ends() -> None:
    engine = EvoEngine(SPACE, EvolutionConfig(generations=3, patience=None), seed=0)
    while candidates := engine.ask():
        for candidate in candidates:
            engine.tell(candidate.slot, Outcome(lost=True))
    assert engine.best is None
    assert len(engine.history) == 3


def test_too_little_diversity_brings_a_newcomer() -> None:
    engine = EvoEngine(SPACE, EvolutionConfig(generations=2, patience=None), seed=0)
    for candidate in engine.ask():
        engine.tell(candidate.slot, Outcome(fitness=1.0, position=(0.0, 0.0)))
    assert engine.history[0].newcomer


def test_initial_genomes_come_first_and_are_checked() -> None:
    start = {"technique": "a", "only_a": 1.0, "x": 0.3}
    engine = EvoEngine(SPACE, EvolutionConfig(), seed=0, initial=(start,))
    assert SPACE.expressed(engine.ask()[0].genome) == start
    with pytest.raises(ConfigError, match="only_a"):
        EvoEngine(SPACE, EvolutionConfig(), seed=0, initial=({"only_a": 2.0},))


def test_a_slot_is_told_once() -> None:
    engine = EvoEngine(SPACE, EvolutionConfig(), seed=0)
    engine.tell(0, Outcome())
    with pytest.raises(KeyError):
        engine.tell(0, Outcome())


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0.001, 1))
def test_operators_stay_in_the_space(seed: int, rate: float, strength: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = SPACE.sample(rng), SPACE.sample(rng)
    child = crossover(SPACE, a, b, rng)
    assert child["technique"] in (a["technique"], b["technique"])
    mutant = mutate(SPACE, child, rng, rate, strength)
    for genome in (child, mutant):
        SPACE.complete(genome, rng)
        assert set(genome) == set(a)


@given(st.integers(0, 1000))
def test_a_mutant_changes_only_what_is_expressed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    genome = SPACE.sample(rng)
    mutant = mutate(SPACE, genome, rng, 1.0, 0.2)
    expressed = SPACE.expressed(genome)
    assert all(mutant[name] == genome[name] for name in genome if name not in expressed)


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20)


@given(points)
def test_fronts_are_what_domination_says(values: list[tuple[int, int]]) -> None:
    array = np.array(values, float)
    found = fronts(array)
    assert sorted(i for front in found for i in front) == list(range(len(values)))

    def dominated(i: int, others: list[int]) -> bool:
        return any((array[j] <= array[i]).all() and (array[j] < array[i]).any() for j in others)

    left = list(range(len(values)))
    for front in found:
        assert front == [i for i in left if not dominated(i, left)]
        left = [i for i in left if i not in front]
    assert ranking(array)[0] in found[0]


def test_crowding_of_three_points_is_the_known_value() -> None:
    assert crowding(np.array([[0.0, 4.0], [1.0, 1.0], [4.0, 0.0]])).tolist() == [np.inf, 2.0, np.inf]


def test_pareto_selection_approaches_a_known_front() -> None:
    engine = EvoEngine(
        real_space([0] * 4, [1] * 4),
        EvolutionConfig(population=24, generations=40, tournament=2, mutation=0.25, selection="pareto", patience=None),
        seed=0,
    )
    while candidates := engine.ask():
        for candidate in candidates:
            x = np.array(list(candidate.genome.values()), float)
            engine.tell(candidate.slot, Outcome(objectives=(float(x[0]), float(1 - x[0] + x[1:].sum()))))
    sums = [sum(individual.outcome.objectives) for individual in engine.population]
    assert max(sums) < 1.05
