"""Recombination and mutation of genomes.

Real genes recombine by simulated binary crossover (SBX, Deb & Agrawal 1995) and mutate by a Gaussian step of a share of
their range, cut at its ends: reflected there, optima on the boundary stay out of reach (seen on ZDT). Choices are taken
from either parent and are redrawn. The mutation rate is per expressed gene, so that genes which mean nothing now do not
use it up.
"""

import numpy as np

from phases.evomerge.space import Choice, Gene, Genome, Space, Value

SBX_ETA = 15.0  # distribution index, the customary value (pymoo's default)


def crossover(space: Space, first: Genome, second: Genome, rng: np.random.Generator) -> dict[str, Value]:
    """Return a child of two parents. Its technique, where there is one, is one parent's with all that belongs to it.

    Genes that only one parent expresses come from that one: the other's values have not been selected for.
    """
    if rng.random() < 0.5:
        first, second = second, first
    child = dict(first)
    shared = {gene.name for gene in space.genes_of(second)}
    for gene in space.genes_of(first):
        if gene.name in shared and gene.name != space.switch and rng.random() < 0.5:
            child[gene.name] = _recombine(gene, first[gene.name], second[gene.name], rng)
    return child


def mutate(space: Space, genome: Genome, rng: np.random.Generator, rate: float, strength: float) -> dict[str, Value]:
    """Return a mutant: each expressed gene with probability `rate`, at least one; `strength` is a share of a range."""
    genes = space.genes_of(genome)
    chosen = rng.random(len(genes)) < rate
    if not chosen.any():
        chosen[rng.integers(len(genes))] = True
    mutant = dict(genome)
    for gene, changes in zip(genes, chosen, strict=True):
        if changes:
            mutant[gene.name] = _changed(gene, genome[gene.name], rng, strength)
    return mutant


def _recombine(gene: Gene, a: Value, b: Value, rng: np.random.Generator) -> Value:
    if isinstance(gene, Choice):
        return b
    if rng.random() < 0.5:  # without the swap SBX stays near its first parent and mixes nothing
        a, b = b, a
    u = rng.random()
    spread = (2 * u if u <= 0.5 else 1 / (2 - 2 * u)) ** (1 / (SBX_ETA + 1))
    return float(np.clip(0.5 * ((1 + spread) * float(a) + (1 - spread) * float(b)), gene.low, gene.high))


def _changed(gene: Gene, value: Value, rng: np.random.Generator, strength: float) -> Value:
    if isinstance(gene, Choice):
        others = [option for option in gene.options if option != value]
        return others[int(rng.integers(len(others)))] if others else value
    step = strength * (gene.high - gene.low) * float(rng.normal())
    return float(np.clip(float(value) + step, gene.low, gene.high))
