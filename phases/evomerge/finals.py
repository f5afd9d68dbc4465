"""The finals: the best candidates of a search again, on more data than a search can pay for on every candidate.

The best of hundreds of noisy measurements owes part of its lead to the noise. What decides between the leaders is
therefore measured once more, on text and questions that the search did not use, and the best parent competes too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from phases.errors import ArtifactError
from phases.evomerge.engine import Individual
from phases.evomerge.evaluate import Evaluator
from phases.evomerge.ledger import Ledger, Lost
from phases.evomerge.search import SearchPlan
from phases.evomerge.space import Genome


@dataclass(frozen=True)
class Finalist:
    """An expressed genome, its fitness in the search, and what was found in the finals."""

    genome: Genome
    search_fitness: float
    fitness: float
    metrics: dict[str, float]


def entrants(plan: SearchPlan, everyone: Sequence[Individual]) -> list[Genome]:
    """Return the expressed genomes that are measured again: the best parent, then the best of the search."""
    return [genome for genome, _ in _entrants(plan, everyone)]


def decide(plan: SearchPlan, judge: Evaluator, everyone: Sequence[Individual], ledger: Ledger) -> list[Finalist]:
    """Return the finalists from their entries in the ledger, best first; ties go to the better one of the search.

    Raises `ArtifactError` where an entry is missing, or the best parent's says that it is lost.
    """
    rivals = _entrants(plan, everyone)
    entries = [ledger.get(judge.key(genome)) for genome, _ in rivals]
    best_parent = entries[0]
    if best_parent is None or isinstance(best_parent, Lost) or None in entries:
        raise ArtifactError(f"{ledger.folder}: the finals are not finished, or the ledger is damaged")
    found = [
        (genome, searched, plan.outcome(entry, best_parent, judge.rows.answer_tokens))
        for (genome, searched), entry in zip(rivals, entries, strict=True)
        if not isinstance(entry, Lost)
    ]
    finalists = [Finalist(genome, searched, o.fitness, o.metrics) for genome, searched, o in found]
    return sorted(finalists, key=lambda finalist: (-finalist.fitness, -finalist.search_fitness))


def _entrants(plan: SearchPlan, everyone: Sequence[Individual]) -> list[tuple[Genome, float]]:
    alive = sorted((i for i in everyone if not i.outcome.lost), key=lambda i: -i.outcome.fitness)
    chosen: list[tuple[Genome, float]] = [(plan.space.expressed(plan.initial[0]), 1.0)]
    for individual in alive:
        genome = plan.space.expressed(individual.genome)
        if len(chosen) <= plan.config.finals.entrants and genome not in [other for other, _ in chosen]:
            chosen.append((genome, individual.outcome.fitness))
    return chosen
