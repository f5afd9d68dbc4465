"""Rounds of a benchmark that ran while nobody else kept the machine's memory busy.

Whoever shares a host shares its memory, and is seen in no load average: decoding, which waits for weights, took up to
twice as long, and ratios moved by a fifth, while a loop of Python took the same time. So reading a block of memory is
timed around each round, and rounds go on until as many as are wanted ran between fast reads. What is measured has no
say in which rounds count.
"""

import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.harness import Baseline, Figure, progress, torch_threads
from phases.timing import Samples, in_turn

QUIET = 1.15  # times the fastest read, up to which memory is quiet
_BYTES = 64 * 2**20  # of the block: more than most third-level caches hold
_LOOKS, _PAUSE_SECONDS = 40, 0.05  # reads before all rounds, so that a fast one is known
_PATIENCE = 10  # rounds for each that is wanted, after which the quietest count


class QuietMemory:
    """How fast memory has been read, and what ran meanwhile."""

    def __init__(self, reader: Callable[[], float] | None = None) -> None:
        """Look at memory for two seconds. `reader` returns the seconds that reading took."""
        self._reader = reader or _block_reader()
        self._fastest, self._slowest, self._tried, self._counted = math.inf, 0.0, 0, 0
        for _ in range(_LOOKS):
            self._read()
            time.sleep(_PAUSE_SECONDS)

    def interleave(self, candidates: Mapping[str, Callable[[], object]], repetitions: int) -> Samples:
        """Time each candidate once a round, in turns on one thread; return name -> CPU seconds of each quiet round."""
        with torch_threads(1):
            return self.rounds(lambda number: in_turn(candidates, number), repetitions)

    def rounds(self, measure: Callable[[int], Mapping[str, float]], repetitions: int, warmup: int = 2) -> Samples:
        """Call `measure` with the number of each round and return name -> what it found in so many quiet rounds.

        `warmup` rounds go before those that can count. Where too few are quiet, the quietest count, and `figure` tells.
        """
        for number in range(-warmup, 0):
            measure(number)
        found, before = list[tuple[float, Mapping[str, float]]](), self._read()
        while len(found) < _PATIENCE * repetitions and self._quiet(found) < repetitions:
            values = measure(len(found))
            after = self._read()
            found.append((max(before, after), values))
            before = after
            latest = "  ".join(f"{name} {value:.3g} s" for name, value in values.items())
            progress(f"round {len(found)}, {self._quiet(found)} of {repetitions} quiet: {latest}")
        counted = sorted(sorted(range(len(found)), key=lambda place: found[place][0])[:repetitions])
        self._tried, self._counted = self._tried + len(found), self._counted + len(counted)
        self._slowest = max(self._slowest, *(found[place][0] for place in counted))
        return {name: [found[place][1][name] for place in counted] for name in found[0][1]}

    def figure(self) -> Figure:
        """Return how quiet memory was in the rounds that counted: the slowest read as times the fastest."""
        return Figure(
            key="memory_read_in_counted_rounds",
            value=self._slowest / self._fastest,
            unit="x of the fastest read",
            better="lower",
            goal=QUIET,
            baseline=Baseline(what="share of rounds that counted", value=self._counted / self._tried),
        )

    def _quiet(self, found: list[tuple[float, Mapping[str, float]]]) -> int:
        return sum(read <= QUIET * self._fastest for read, _ in found)

    def _read(self) -> float:
        seconds = self._reader()
        self._fastest = min(self._fastest, seconds)
        return seconds


def _block_reader() -> Callable[[], float]:
    block = np.ones(_BYTES // 8)

    def seconds() -> float:
        start = time.perf_counter()
        block.sum()
        return time.perf_counter() - start

    return seconds
