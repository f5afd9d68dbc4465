"""The finals: the best candidates of a search again, on more data than a search can pay for on every candidate.

The best of hundreds of noisy measurements owes part of its lead to the noise, and those next to it are its relatives.
So the best of each kind are measured once more, on text and questions that the search did not use. They have to beat
candidates that owe nothing to any search, the best parent's weights with the settings of each of the parents, by more
than the noise that is left: the plainer of two that cannot be told apart is the better bet, as in the one standard
error rule (Breiman et al. 1984).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from phases.errors import ArtifactError
from phases.evomerge.engine import Individual
from phases.evomerge.evaluate import Evaluator
from phases.evomerge.fitness import Measured, outcome
from phases.evomerge.ledger import Ledger, Lost
from phases.evomerge.search import SearchPlan
from phases.evomerge.space import Choice, Genome, Value


@dataclass(frozen=True)
class Finalist:
    """An expressed genome and what was found in the finals."""

    genome: Genome
    fitness: float
    metrics: dict[str, float]
    plain: bool


def entrants(plan: SearchPlan, everyone: Sequence[Individual]) -> list[Genome]:
    """Return the expressed genomes that are measured again: the best parent, the other plain ones, the best by kind."""
    choices = [gene for gene in plan.space.genes if isinstance(gene, Choice)]
    chosen = _plain(plan)
    kinds = list[list[Value | None]]()
    for individual in sorted(everyone, key=lambda individual: -individual.outcome.fitness):
        genome = plan.space.expressed(individual.genome)
        kind = [genome.get(gene.name) for gene in choices]
        if len(kinds) < plan.config.finals.entrants and kind not in kinds and not individual.outcome.lost:
            kinds.append(kind)
            chosen += [genome] if genome not in chosen else []
    return chosen


def _plain(plan: SearchPlan) -> list[Genome]:
    """Return the best parent, and its weights with the settings of the others."""
    best_parent = plan.space.expressed(plan.initial[0])
    (settings,) = [gene.options for gene in plan.space.genes if isinstance(gene, Choice) and gene.name == "settings"]
    others = [name for name in settings if name != best_parent["settings"]]
    return [best_parent, *(best_parent | {"settings": name} for name in others)]


def decide(plan: SearchPlan, judge: Evaluator, everyone: Sequence[Individual], ledger: Ledger) -> list[Finalist]:
    """Return the finalists from their entries in the ledger, best first, plain ones `margin` better than measured.

    Raises `ArtifactError` where an entry is missing, or the best parent's says that it is lost.
    """
    genomes = entrants(plan, everyone)
    entries = [ledger.get(judge.key(genome)) for genome in genomes]
    best_parent = entries[0]
    if best_parent is None or isinstance(best_parent, Lost) or None in entries:
        raise ArtifactError(f"{ledger.folder}: the finals are not finished, or the ledger is damaged")
    found = [
        (genome, outcome(entry, best_parent, plan.config.fitness, judge.rows.answer_tokens))
        for genome, entry in zip(genomes, entries, strict=True)
        if isinstance(entry, Measured)
    ]
    plain, margin = _plain(plan), plan.config.finals.margin
    finalists = [Finalist(genome, told.fitness, told.metrics, genome in plain) for genome, told in found]
    return sorted(finalists, key=lambda finalist: -(finalist.fitness + margin * finalist.plain))
