"""The search against others on the same merges: CMA-ES, pymoo's genetic algorithm and random search, equal budgets.

The candidates are merges of three trained nano specialists. All searchers see the same genes (as numbers in [0, 1] for
those that know nothing else), begin with the same genomes, and pay for the same number of evaluations; what each finds
is then measured on text and questions that no search saw.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import RESULTS, Baseline, Figure, each_seed, interleave, progress
from coordinators.config import load_config
from phases import modeldir, rundir, storage
from phases.cognate import phase as cognate
from phases.contract import PhaseResult
from phases.corpus.packed import Corpus
from phases.corpus.prepare import prepare
from phases.evomerge import phase
from phases.evomerge.candidate import Positions
from phases.evomerge.config import EvoMergeConfig
from phases.evomerge.engine import EvoEngine, EvolutionConfig, Individual
from phases.evomerge.errors import MergeError
from phases.evomerge.evaluate import sample_model
from phases.evomerge.finals import decide, entrants
from phases.evomerge.fitness import FitnessRows, Measured, fitness
from phases.evomerge.genome import uniform
from phases.evomerge.heldout import held_out_rows
from phases.evomerge.ledger import Ledger
from phases.evomerge.space import Choice, Genome, Space, Value
from phases.probes import RunFiles

BUDGET, QUICK_BUDGET = 302, 98  # evaluations, of which the finals take 72
_FINALS = 12  # data of the finals over the search's
_TIE = 0.005  # fitness; the tolerance of the phase's claim
_RIVALS = ("cma-es", "pymoo GA", "random search", "best parent", "uniform average")
Vector = npt.NDArray[np.float64]


def search_figures(quick: bool) -> list[Figure]:
    """Return `search_wins` and `merge_share`."""
    run = specialists()
    seeds, budget = (2, QUICK_BUDGET) if quick else (10, BUDGET)
    # Entries of the ledger are named by all that counts, so what is there need not be redone.
    rows = each_seed(partial(_contest, str(run), str(RESULTS / "evomerge-ledger"), budget), range(seeds))
    wins = [float(all(row["ours"] >= row[rival] - _TIE for rival in _RIVALS)) for row in rows]
    raw = {name: [row[name] for row in rows] for name in ("ours", *_RIVALS)}
    means = ", ".join(f"{name} {np.mean(values):.4f}" for name, values in raw.items())
    progress(f"mean held-out fitness: {means}")
    figure = Figure(
        key="search_wins",
        value=sum(wins),
        unit=f"of {seeds} seeds, {budget} evaluations",
        better="higher",
        goal=None if quick else 8,
        baseline=Baseline(
            what="best of the rivals, mean held-out fitness", value=max(np.mean(raw[r]) for r in _RIVALS)
        ),
        raw=raw,
    )
    return [figure, _merge_share(run, 5 if quick else 15)]


def specialists() -> Path:
    """Return a run directory with three trained nano models and their warm-up, made once and kept."""
    config = load_config("nano")
    digest = hashlib.sha256(config.cognate.model_dump_json().encode()).hexdigest()[:8]
    run = RESULTS / f"evomerge-specialists-{digest}"
    if storage.exists(str(run / rundir.result_path("cognate"))):
        return run
    progress("training the specialists: a few minutes, once")
    torch.set_num_threads(1)
    prepare(config.corpus, seed=0, folder=run / rundir.CORPUS, progress=lambda stage, share: None)
    vocabulary = config.corpus.vocab_size
    jobs = [cognate.warm_up_job(config.cognate, vocabulary)]
    jobs += [cognate.variant_job(config.cognate, variant, vocabulary) for variant in config.cognate.variants]
    for job in jobs:
        progress(f"training {job.role}")
        cognate.pretrain(job, str(run), 0, state=None, save=lambda state: None, on_step=lambda step: None)
    _write_result(run, [job.role for job in jobs])
    return run


def _write_result(run: Path, roles: list[str]) -> None:
    now = datetime.now(UTC)
    refs = {role: modeldir.open_ref(str(run / cognate.model_path(role))) for role in roles}
    models = {role: ref.model_copy(update={"uri": cognate.model_path(role)}) for role, ref in refs.items()}
    result = PhaseResult(
        success=True, phase="cognate", model=None, models=models, start_time=now, end_time=now, duration_seconds=0
    )
    rundir.write_result(str(run), result)


@dataclass
class _Problem:
    """Fitness of genomes, as every searcher sees it. Refused merges score nothing."""

    search: phase.Search
    positions: Positions
    ledger: Ledger
    evaluations: int = 0

    @property
    def space(self) -> Space:
        return self.search.plan.space

    def measure(self, genome: Genome) -> Measured | None:
        self.evaluations += 1
        try:
            return self.search.evaluator.recorded(self.space.expressed(genome), self.positions, self.ledger)
        except MergeError:
            return None

    def fitness(self, genome: Genome) -> float:
        return self.search.plan.outcome(self.measure(genome)).fitness


def config_of(budget: int) -> EvoMergeConfig:
    """Return a search whose evaluations, with those of the finals at what their data costs, are the budget's."""
    data = {"text_tokens": 1024, "streams": 8, "task_instances": 6}
    finals = {"entrants": 3, "data": {name: _FINALS * value for name, value in data.items()} | {"streams": 16}}
    evolution = EvolutionConfig(generations=1 + (budget - 6 * _FINALS - 8) // 6, patience=None)
    return EvoMergeConfig.model_validate({"evolution": evolution, "data": data, "finals": finals})


def _contest(run: str, ledger: str, budget: int, seed: int) -> dict[str, float]:
    """Let all searchers spend `budget` evaluations and return the held-out fitness of what each found."""
    config = config_of(budget)
    search = phase.prepare(RunFiles(run), config, 0)
    problem = _Problem(search, Positions(search.evaluator.parents, 0), Ledger(ledger))
    searchers: dict[str, Callable[[_Problem, int, int], Genome]] = {
        "ours": _ours,
        "cma-es": _cma,
        "pymoo GA": _pymoo,
        "random search": _random,
    }
    found = {name: searcher(problem, budget, seed) for name, searcher in searchers.items()}
    names = search.evaluator.parents.names
    best = str(search.plan.initial[0]["settings"])
    found |= {"best parent": search.plan.initial[0], "uniform average": uniform(names, best)}
    corpus = Corpus.open(Path(run) / rundir.CORPUS)
    rows = held_out_rows(corpus, config, 0)
    expressed = search.plan.space.expressed
    measured = {n: _held_out(search, g if n == "ours" else expressed(g), rows) for n, g in found.items()}
    reference = measured["best parent"]
    scores = {name: fitness(value, reference, config.fitness, rows.answer_tokens) for name, value in measured.items()}
    progress(f"seed {seed}: " + "  ".join(f"{name} {score:.4f}" for name, score in scores.items()))
    return scores


def _held_out(search: phase.Search, genome: Genome, rows: FitnessRows) -> Measured:
    config, tensors = search.evaluator.build(genome)
    return sample_model(config, tensors, rows).measured()


def _ours(problem: _Problem, budget: int, seed: int) -> Genome:
    plan, everyone = problem.search.plan, list[Individual]()
    engine = EvoEngine(plan.space, config_of(budget).evolution, seed, plan.initial)
    while candidates := engine.ask():
        for candidate in candidates:
            told = plan.outcome(problem.measure(candidate.genome))
            everyone.append(Individual(candidate.genome, told))
            engine.tell(candidate.slot, told)
    for genome in entrants(plan, everyone):
        problem.search.judge.recorded(genome, problem.positions, problem.ledger)
    return decide(plan, problem.search.judge, everyone, problem.ledger)[0].genome


def _random(problem: _Problem, budget: int, seed: int) -> Genome:
    rng = np.random.default_rng(seed)
    genomes: list[Genome] = [problem.space.complete(genome, rng) for genome in problem.search.plan.initial]
    genomes += [problem.space.sample(rng) for _ in range(budget - len(genomes))]
    return max(genomes, key=problem.fitness)


def _cma(problem: _Problem, budget: int, seed: int) -> Genome:
    """Run CMA-ES from the best of the first genomes, with its own defaults for the population."""
    import cma

    rng = np.random.default_rng(seed)
    starts = [problem.space.complete(genome, rng) for genome in problem.search.plan.initial]
    start = max(starts, key=problem.fitness)
    options = {"bounds": [0, 1], "maxfevals": budget - len(starts), "seed": seed + 1, "verbose": -9}
    best = (problem.fitness(start), start)
    strategy = cma.CMAEvolutionStrategy(_encode(problem.space, start), 0.2, options)
    left = budget - len(starts)
    while left > 0 and not strategy.stop():
        points = strategy.ask()[: max(left, 2)]
        genomes = [_decode(problem.space, point) for point in points]
        scores = [problem.fitness(genome) for genome in genomes]
        left -= len(points)
        best = max([best, *zip(scores, genomes, strict=True)], key=lambda pair: pair[0])
        if len(points) == strategy.popsize:
            strategy.tell(points, [-score for score in scores])
    return best[1]


def _pymoo(problem: _Problem, budget: int, seed: int) -> Genome:
    """Run pymoo's GA with our population size, its operators' defaults, and the same first genomes."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.optimize import minimize

    space, rng = problem.space, np.random.default_rng(seed)
    starts = [_encode(space, space.complete(genome, rng)) for genome in problem.search.plan.initial]

    class Merges(ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=len(space.genes), n_obj=1, xl=0.0, xu=1.0)

        def _evaluate(self, x: Vector, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = -problem.fitness(_decode(space, x))

    result = minimize(Merges(), GA(pop_size=8, sampling=np.array(starts)), ("n_eval", budget), seed=seed + 1)
    return _decode(space, result.X)


def _encode(space: Space, genome: Genome) -> Vector:
    """Return a genome as numbers in [0, 1]; a choice is the middle of its share."""
    numbers = []
    for gene in space.genes:
        value = genome[gene.name]
        if isinstance(gene, Choice):
            numbers.append((gene.options.index(value) + 0.5) / len(gene.options))
        else:
            numbers.append((float(value) - gene.low) / (gene.high - gene.low))
    return np.array(numbers)


def _decode(space: Space, numbers: Vector) -> dict[str, Value]:
    genome: dict[str, Value] = {}
    for gene, number in zip(space.genes, numbers, strict=True):
        share = min(max(float(number), 0.0), 1.0)
        if isinstance(gene, Choice):
            genome[gene.name] = gene.options[min(math.floor(share * len(gene.options)), len(gene.options) - 1)]
        else:
            genome[gene.name] = gene.low + share * (gene.high - gene.low)
    return genome


def _merge_share(run: Path, repetitions: int) -> Figure:
    """Measure what merging costs within one evaluation at 4,096 tokens, over the techniques' first genomes."""
    torch.set_num_threads(1)
    config = EvoMergeConfig.model_validate({"data": {"text_tokens": 4096}})
    search = phase.prepare(RunFiles(str(run)), config, 0)
    genomes = [search.plan.space.expressed(g) for g in search.plan.initial]
    evaluator, positions = search.evaluator, Positions(search.evaluator.parents, 0)
    seconds = interleave(
        {
            "merge": lambda: [evaluator.build(genome) for genome in genomes],
            "evaluation": lambda: [evaluator.measure(genome, positions) for genome in genomes],
        },
        repetitions,
    )
    shares = [a / b for a, b in zip(seconds["merge"], seconds["evaluation"], strict=True)]
    return Figure(
        key="merge_share",
        value=float(np.median(shares)),
        unit="of an evaluation's CPU time",
        better="lower",
        goal=0.05,
        baseline=Baseline(what="evaluation, CPU s", value=float(np.median(seconds["evaluation"])) / len(genomes)),
        low=min(shares),
        high=max(shares),
        raw=seconds,
    )
