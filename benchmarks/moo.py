"""The evolution engine on ZDT1-3 and DTLZ2 against pymoo's NSGA-II, by hypervolume at equal evaluations.

Both get 100 individuals and 100 generations, the same seeds, and their operators' usual settings for these problems;
the hypervolume is that of the last population, against the reference point 1.1 in every objective.
"""

import statistics
from typing import Any

import numpy as np

from benchmarks.harness import Baseline, Figure, progress
from phases.errors import ConfigError
from phases.evomerge.engine import EvoEngine, EvolutionConfig, Outcome
from phases.evomerge.space import real_space
from phases.timing import bootstrap

_PROBLEMS = ("zdt1", "zdt2", "zdt3", "dtlz2")
_POPULATION, _GENERATIONS = 100, 100


def run(quick: bool) -> list[Figure]:
    """Measure the ratio of hypervolumes, problem by problem; `moo_hypervolume` is the least of the medians."""
    figures = [_compare(problem, range(2 if quick else 5)) for problem in _PROBLEMS]
    worst = min(figures, key=lambda figure: figure.value)
    return [*figures, worst.model_copy(update={"key": "moo_hypervolume", "goal": 1.0})]


def _compare(name: str, seeds: range) -> Figure:
    ours, theirs = [], []
    for seed in seeds:
        problem = _problem(name)
        ours.append(_hypervolume(problem, _evolve(problem, seed)))
        theirs.append(_hypervolume(problem, _nsga2(problem, seed)))
        progress(f"{name}, seed {seed}: {ours[-1]:.4f} against {theirs[-1]:.4f}")
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, high = bootstrap(ratios)
    return Figure(
        key=f"hypervolume_{name}",
        value=statistics.median(ratios),
        unit="x",
        better="higher",
        baseline=Baseline(what="pymoo NSGA-II, hypervolume", value=statistics.median(theirs)),
        low=low,
        high=high,
        raw={"ours": ours, "pymoo": theirs},
    )


def _problem(name: str) -> Any:
    try:
        from pymoo.problems import get_problem
    except ImportError as error:
        raise ConfigError.of("benchmark", "moo", "pymoo is not installed", "pip install -e '.[dev]'") from error
    return get_problem(name)


def _evolve(problem: Any, seed: int) -> np.ndarray[Any, Any]:
    space = real_space(problem.xl, problem.xu)
    config = EvolutionConfig(
        population=_POPULATION,
        generations=_GENERATIONS,
        tournament=2,
        crossover=0.9,
        mutation=1 / problem.n_var,
        selection="pareto",
        patience=None,
    )
    engine = EvoEngine(space, config, seed)
    while candidates := engine.ask():
        x = np.array([list(candidate.genome.values()) for candidate in candidates], dtype=float)
        for candidate, objectives in zip(candidates, problem.evaluate(x), strict=True):
            engine.tell(candidate.slot, Outcome(objectives=tuple(objectives.tolist())))
    return np.array([individual.outcome.objectives for individual in engine.population])


def _nsga2(problem: Any, seed: int) -> np.ndarray[Any, Any]:
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.optimize import minimize

    result = minimize(problem, NSGA2(pop_size=_POPULATION), ("n_gen", _GENERATIONS), seed=seed)
    found: np.ndarray[Any, Any] = result.F
    return found


def _hypervolume(problem: Any, points: np.ndarray[Any, Any]) -> float:
    from pymoo.indicators.hv import Hypervolume

    return float(Hypervolume(ref_point=np.full(problem.n_obj, 1.1))(points))
