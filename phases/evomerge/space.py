"""What a search varies: named genes, some of which count only under one technique.

A genome is a plain dictionary with a value for every gene of its space, so that a gene which is not expressed now is
carried along and can matter again after the technique changes. What a genome means is its expressed part alone: two
genomes that differ elsewhere are the same candidate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from phases.errors import ConfigError

Value = float | int | str
Genome = Mapping[str, Value]


@dataclass(frozen=True)
class Real:
    """A number in [low, high]. Expressed under the switch values `only`; None is always."""

    name: str
    low: float
    high: float
    only: frozenset[str] | None = None

    def sample(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Choice:
    """One of `options`, which have no order."""

    name: str
    options: tuple[Value, ...]
    only: frozenset[str] | None = None

    def sample(self, rng: np.random.Generator) -> Value:
        return self.options[int(rng.integers(len(self.options)))]


Gene = Real | Choice


@dataclass(frozen=True)
class Space:
    """All genes. `switch` names the one whose value decides which of the others are expressed."""

    genes: tuple[Gene, ...]
    switch: str | None = None

    def sample(self, rng: np.random.Generator) -> dict[str, Value]:
        """Return a genome with every gene drawn uniformly."""
        return {gene.name: gene.sample(rng) for gene in self.genes}

    def genes_of(self, genome: Genome) -> list[Gene]:
        """Return the genes that `genome` expresses."""
        under = genome[self.switch] if self.switch else None
        return [gene for gene in self.genes if gene.only is None or under in gene.only]

    def expressed(self, genome: Genome) -> dict[str, Value]:
        """Return the part of `genome` that decides what it means."""
        return {gene.name: genome[gene.name] for gene in self.genes_of(genome)}

    def complete(self, partial: Mapping[str, Value], rng: np.random.Generator) -> dict[str, Value]:
        """Return a genome with the values of `partial` and the rest drawn.

        Raises `ConfigError` naming a gene that does not exist or a value outside of its range.
        """
        self._check(partial)
        return self.sample(rng) | dict(partial)

    def _check(self, partial: Mapping[str, Value]) -> None:
        genes = {gene.name: gene for gene in self.genes}
        for name, value in partial.items():
            gene = genes.get(name)
            match gene:
                case None:
                    raise ConfigError.of(f"genome.{name}", value, "no such gene", f"genes are {', '.join(genes)}")
                case Real() if not (isinstance(value, int | float) and gene.low <= value <= gene.high):
                    raise ConfigError.of(f"genome.{name}", value, "out of range", f"{gene.low} to {gene.high}")
                case Choice() if value not in gene.options:
                    fix = f"choose one of {', '.join(map(str, gene.options))}"
                    raise ConfigError.of(f"genome.{name}", value, "no such option", fix)


def real_space(lows: Sequence[float], highs: Sequence[float]) -> Space:
    """Return a space of real numbers x0, x1, ... without a switch."""
    return Space(tuple(Real(f"x{i}", low, high) for i, (low, high) in enumerate(zip(lows, highs, strict=True))))
