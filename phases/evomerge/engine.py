"""The evolutionary search, as an ask/tell engine that knows neither Ray nor models.

`ask` gives the candidates of the current generation that still lack an outcome; `tell` takes outcomes in any order. A
generation closes when its last outcome is in, and what the next one holds depends on nothing but the seed and the
outcomes: every draw is keyed by (seed, generation, slot). So the result is the same for one worker or many, whatever
finished first, and after `load(state())` at any point.

Two ways of selection. `scalar` maximises the fitness: the elite survive, parents win tournaments on fitness and on how
far they are from the rest. `pareto` minimises several objectives as NSGA-II does. The non-dominated front of everything
that was evaluated is kept in both.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from phases.errors import ConfigError
from phases.evomerge.operators import crossover, mutate
from phases.evomerge.pareto import crowding, fronts, ranking
from phases.evomerge.space import Genome, Space, Value
from phases.seeds import numpy_rng
from phases.settings import Settings

_LEAST_GAIN = 1e-6  # fitness that counts as an improvement for patience


class EvolutionConfig(Settings):
    """The search. Defaults are the documented ones unless said otherwise."""

    population: int = Field(default=8, ge=2, description="candidates per generation")
    generations: int = Field(default=50, ge=1, description="most generations, the initial one included")
    tournament: int = Field(default=3, ge=1, description="candidates that compete to be a parent")
    elitism: int = Field(default=2, ge=0, description="best candidates that survive unchanged")
    crossover: float = Field(default=0.7, ge=0, le=1, description="probability that a child has two parents")
    mutation: float = Field(default=0.1, ge=0, le=1, description="probability that an expressed gene mutates")
    strength: float = Field(default=0.05, gt=0, le=1, description="deviation of a mutation, share of the gene's range")
    adaptive: bool = Field(
        default=False, description="scale the strength by 1.5 after a generation that improved, else by 0.9"
    )
    diversity_weight: float = Field(default=0.3, ge=0, le=1, description="of distance to the others in tournaments")
    diversity_floor: float = Field(default=0.2, ge=0, description="below it a random newcomer takes the last slot")
    patience: int | None = Field(default=5, ge=1, description="generations without gain to stop after; None never")
    selection: Literal["scalar", "pareto"] = "scalar"

    @model_validator(mode="after")
    def _children_are_made(self) -> Self:
        if self.elitism >= self.population:
            raise ConfigError.of("elitism", self.elitism, "leaves no slot for children", "use less than population")
        return self


@dataclass(frozen=True)
class Candidate:
    """A genome that waits for its outcome."""

    generation: int
    slot: int
    genome: Genome


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found. A lost candidate could not be evaluated; it never wins."""

    fitness: float = 0.0  # higher is better
    objectives: tuple[float, ...] = ()  # lower is better
    position: tuple[float, ...] = ()  # in task-vector space, in units of the largest distance between parents
    metrics: dict[str, float] = field(default_factory=dict)
    lost: bool = False


@dataclass(frozen=True)
class Individual:
    """A candidate with its outcome."""

    genome: Genome
    outcome: Outcome


@dataclass(frozen=True)
class Generation:
    """The record of a closed generation. Diversity is the mean distance between two positions."""

    number: int
    best_fitness: float
    average_fitness: float
    diversity: float
    lost: int
    stale: int  # generations since the last gain
    newcomer: bool  # whether diversity was below the floor


class EvoEngine:
    """A search over `space`. `initial` are genomes that the first generation begins with; the rest of it is drawn."""

    def __init__(self, space: Space, config: EvolutionConfig, seed: int, initial: tuple[Genome, ...] = ()) -> None:
        self.space, self.config, self.seed = space, config, seed
        self.generation = 0
        self.history: list[Generation] = []
        self.front: list[Individual] = []
        self.best: Individual | None = None
        self._strength = config.strength
        self.population: list[Individual] = []
        self._survivors: list[Individual] = []
        self._outcomes: dict[int, Outcome] = {}
        known = [space.complete(genome, self._rng("complete", slot)) for slot, genome in enumerate(initial)]
        drawn = [space.sample(self._rng("sample", slot)) for slot in range(len(known), config.population)]
        self._children: list[Genome] = [*known[: config.population], *drawn]

    @property
    def finished(self) -> bool:
        """Whether the generations are used up or `patience` is."""
        stale = self.history[-1].stale if self.history else 0
        patient = self.config.patience is None or stale < self.config.patience
        return self.generation >= self.config.generations or not patient

    def ask(self) -> list[Candidate]:
        """Return the candidates of this generation that have no outcome yet; none when the search is finished."""
        if self.finished:
            return []
        return [
            Candidate(self.generation, slot, genome)
            for slot, genome in enumerate(self._children)
            if slot not in self._outcomes
        ]

    def tell(self, slot: int, outcome: Outcome) -> None:
        """Take the outcome of a slot of this generation; the last one closes it. Raises `KeyError` for another slot."""
        if slot in self._outcomes or not 0 <= slot < len(self._children):
            raise KeyError(f"slot {slot} of generation {self.generation} waits for no outcome")
        finite = np.isfinite([outcome.fitness, *outcome.objectives]).all()
        self._outcomes[slot] = outcome if finite else Outcome(metrics=outcome.metrics, lost=True)
        if len(self._outcomes) == len(self._children):
            self._close()

    def state(self) -> dict[str, Any]:
        """Return all that `load` needs, as JSON values."""
        return {
            "generation": self.generation,
            "strength": self._strength,
            "children": [dict(genome) for genome in self._children],
            "outcomes": {str(slot): asdict(outcome) for slot, outcome in self._outcomes.items()},
            "survivors": [_dump(individual) for individual in self._survivors],
            "population": [_dump(individual) for individual in self.population],
            "front": [_dump(individual) for individual in self.front],
            "best": _dump(self.best) if self.best else None,
            "history": [asdict(generation) for generation in self.history],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state of an engine with the same space, configuration and seed."""
        self.generation, self._strength = state["generation"], state["strength"]
        self._children = list(state["children"])
        self._outcomes = {int(slot): _outcome(values) for slot, values in state["outcomes"].items()}
        self._survivors = [_individual(values) for values in state["survivors"]]
        self.population = [_individual(values) for values in state["population"]]
        self.front = [_individual(values) for values in state["front"]]
        self.best = _individual(state["best"]) if state["best"] else None
        self.history = [Generation(**values) for values in state["history"]]

    def _rng(self, *names: str | int) -> np.random.Generator:
        return numpy_rng(self.seed, "evolution", *names)

    def _close(self) -> None:
        """Take in a complete generation and make the next one's children."""
        made = [Individual(genome, self._outcomes[slot]) for slot, genome in enumerate(self._children)]
        alive = [individual for individual in (*self._survivors, *made) if not individual.outcome.lost]
        before = self.best.outcome.fitness if self.best else -np.inf
        self.best = max([*([self.best] if self.best else []), *alive], key=lambda i: i.outcome.fitness, default=None)
        self.front = _front([*self.front, *alive])
        gained = self.best is not None and self.best.outcome.fitness > before + _LEAST_GAIN
        self.history.append(self._record(alive, len(made), gained))
        if self.config.adaptive:
            self._strength = float(np.clip(self._strength * (1.5 if gained else 0.9), 0.005, 0.5))
        self.generation += 1
        self._outcomes = {}
        self.population = self._select(alive)
        scalar = self.config.selection == "scalar"
        self._survivors = self.population[: self.config.elitism] if scalar else self.population
        count = self.config.population - (len(self._survivors) if scalar else 0)
        self._children = [self._child(self.population, slot) for slot in range(count)]
        if self.history[-1].newcomer:
            self._children[-1] = self.space.sample(self._rng("newcomer", self.generation))

    def _record(self, alive: list[Individual], made: int, gained: bool) -> Generation:
        fitness = [individual.outcome.fitness for individual in alive]
        diversity = float(_distances(alive).mean()) if len(alive) > 1 else 0.0
        measured = len(alive) > 1 and bool(alive[0].outcome.position)
        stale = 0 if gained or not self.history else self.history[-1].stale + 1
        return Generation(
            number=self.generation,
            best_fitness=self.best.outcome.fitness if self.best else 0.0,
            average_fitness=float(np.mean(fitness)) if fitness else 0.0,
            diversity=diversity,
            lost=made + len(self._survivors) - len(alive),
            stale=stale,
            newcomer=measured and diversity < self.config.diversity_floor,
        )

    def _select(self, alive: list[Individual]) -> list[Individual]:
        """Return those that may be parents, best first."""
        if not alive:
            return []
        if self.config.selection == "pareto":
            order = ranking(np.array([individual.outcome.objectives for individual in alive]))
        else:
            order = sorted(range(len(alive)), key=lambda i: -alive[i].outcome.fitness)
        return [alive[i] for i in order[: self.config.population]]

    def _child(self, population: list[Individual], slot: int) -> dict[str, Value]:
        rng = self._rng("child", self.generation, slot)
        if not population:
            return self.space.sample(rng)
        worth = self._worth(population)
        child = dict(population[self._tournament(worth, rng)].genome)
        if rng.random() < self.config.crossover:
            child = crossover(self.space, child, population[self._tournament(worth, rng)].genome, rng)
        return mutate(self.space, child, rng, self.config.mutation, self._strength)

    def _worth(self, population: list[Individual]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return what tournaments are decided by; `population` comes best first."""
        if self.config.selection == "pareto":
            return -np.arange(len(population), dtype=float)
        fitness = np.array([individual.outcome.fitness for individual in population])
        apart = _distances(population).mean(1) if len(population) > 1 else np.zeros(1)
        weight = self.config.diversity_weight
        worth: np.ndarray[Any, np.dtype[np.float64]] = (1 - weight) * _unit(fitness) + weight * _unit(apart)
        return worth

    def _tournament(self, worth: np.ndarray[Any, np.dtype[np.float64]], rng: np.random.Generator) -> int:
        entrants = rng.integers(len(worth), size=self.config.tournament)
        return int(entrants[np.argmax(worth[entrants])])


def _front(individuals: list[Individual]) -> list[Individual]:
    """Return the non-dominated ones, each point once; the most crowded are left out beyond 100."""
    unique = {i.outcome.objectives: i for i in reversed(individuals) if i.outcome.objectives}
    if not unique:
        return []
    points = np.array(list(unique))
    best = fronts(points)[0]
    if len(best) > 100:
        best = [best[i] for i in np.argsort(-crowding(points[best]), kind="stable")[:100]]
    return [list(unique.values())[i] for i in sorted(best)]


def _distances(individuals: list[Individual]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the distances of each of N individuals to the N - 1 others, (N, N - 1); zeros without positions."""
    positions = np.array([individual.outcome.position for individual in individuals], dtype=np.float64)
    count = len(individuals)
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    others: np.ndarray[Any, np.dtype[np.float64]] = apart[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    return others


def _unit(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return `values` scaled to [0, 1]; zeros where they are all equal."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)


def _dump(individual: Individual) -> dict[str, Any]:
    return {"genome": dict(individual.genome), "outcome": asdict(individual.outcome)}


def _individual(values: dict[str, Any]) -> Individual:
    return Individual(values["genome"], _outcome(values["outcome"]))


def _outcome(values: dict[str, Any]) -> Outcome:
    tuples = {name: tuple(values[name]) for name in ("objectives", "position")}
    return Outcome(**(values | tuples))
