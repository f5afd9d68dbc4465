"""A search over the merges of a run's models: what it consists of, and what it found.

What was found is read off the ledger by replaying the engines with the recorded measurements, so the ledger alone
proves the result, whatever happened to the processes that filled it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from phases import rundir, storage
from phases.errors import ArtifactError
from phases.evomerge.config import EvoMergeConfig
from phases.evomerge.engine import EvoEngine, Individual, Outcome
from phases.evomerge.evaluate import Evaluator
from phases.evomerge.fitness import Measured, outcome
from phases.evomerge.ledger import Ledger, Lost
from phases.evomerge.space import Genome, Space
from phases.seeds import child_seed

FOLDER = rundir.phase_folder("evomerge")
RESULTS = f"{FOLDER}/evomerge_50gen_final_results.json"


@dataclass(frozen=True)
class SearchPlan:
    """What decides how a search goes. `best_parent` is what fitness is relative to."""

    config: EvoMergeConfig
    space: Space
    initial: tuple[Genome, ...]
    seed: int
    best_parent: Measured
    answer_tokens: int

    def engine(self, island: int) -> EvoEngine:
        """Return the search of an island at its start."""
        seed = child_seed(self.seed, "evomerge", "island", island)
        return EvoEngine(self.space, self.config.evolution, seed, self.initial)

    def outcome(self, measured: Measured | None) -> Outcome:
        """Return what the engine is told of a measurement; None is a lost candidate."""
        if measured is None:
            return Outcome(lost=True)
        return outcome(measured, self.best_parent, self.config.fitness, self.answer_tokens)


def ledger_folder(run: str) -> str:
    """Return where the measurements of a run are."""
    return storage.join(run, f"{FOLDER}/ledger")


@dataclass(frozen=True)
class Replay:
    """The finished engines of all islands, and everyone that they were told of."""

    engines: list[EvoEngine]
    everyone: list[Individual]


def replay(plan: SearchPlan, evaluator: Evaluator, ledger: Ledger) -> Replay:
    """Return the search that the ledger holds. Raises `ArtifactError` where it lacks a measurement."""
    done = Replay([plan.engine(island) for island in range(plan.config.islands)], [])
    for engine in done.engines:
        while candidates := engine.ask():
            for candidate in candidates:
                entry = ledger.get(evaluator.key(plan.space.expressed(candidate.genome)))
                if entry is None:
                    raise ArtifactError(
                        f"{ledger.folder}: no measurement of generation {candidate.generation}, slot {candidate.slot}; "
                        "the search is not finished or its ledger is damaged"
                    )
                told = plan.outcome(None if isinstance(entry, Lost) else entry)
                done.everyone.append(Individual(candidate.genome, told))
                engine.tell(candidate.slot, told)
    return done


def summary(engines: Sequence[EvoEngine]) -> dict[str, Any]:
    """Return how the searches went, as JSON values. Raises `ArtifactError` where every candidate was lost."""
    found = [(engine.best.outcome.fitness, -i, engine) for i, engine in enumerate(engines) if engine.best is not None]
    if not found:
        raise ArtifactError("every candidate was lost; the entries of the ledger say why")
    best = max(found)[2]
    return {
        "search_fitness": max(found)[0],
        "generations": len(best.history),
        "diversity": best.history[-1].diversity,
        "history": [asdict(generation) for generation in best.history],
        "islands": [engine.history[-1].best_fitness for engine in engines],
        "front": [
            {
                "genome": best.space.expressed(individual.genome),
                "objectives": list(individual.outcome.objectives),
                "fitness": individual.outcome.fitness,
            }
            for individual in best.front
        ],
    }


def write_search(run: str, found: dict[str, Any], every: int) -> None:
    """Write what was found, and the record of every so many generations."""
    for generation in found["history"][::every]:
        name = f"evomerge_generation_{generation['number']}.json"
        storage.write_json(storage.join(run, f"{FOLDER}/generations/{name}"), generation)
    storage.write_json(storage.join(run, RESULTS), found)


def read_search(run: str) -> dict[str, Any] | None:
    """Return what `write_search` wrote, None before."""
    path = storage.join(run, RESULTS)
    return dict(storage.read_json(path)) if storage.exists(path) else None
