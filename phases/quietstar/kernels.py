"""The nucleus of many distributions, and tokens drawn from it, without ordering any, compiled by Numba for the CPU.

The mass of tokens is summed in bins by the leading bits of their probability, which are ordered as the values are. Only
the bin in which the wanted mass is reached is looked into: a quickselect by mass parts its tokens around pivots. Two
passes over a row, where a full order takes eleven. Sums are kept in float64.
"""

import numpy as np
import numpy.typing as npt

from phases.evomerge.methods.kernels import compiled

Rows = npt.NDArray[np.float32]
Row = npt.NDArray[np.float32]
Bits = npt.NDArray[np.int32]
Sums = npt.NDArray[np.float64]
SHIFT = 19  # leaves eight bits of exponent and four of the mantissa: bins 1/16 to 1/31 of their values wide
TOP = 0x3F800000 >> SHIFT  # the bin of 1.0
BINS = 513  # down to 2^-32; the last one has all that is smaller


@compiled()
def median(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """Return the middle one."""
    return max(min(a, b), min(max(a, b), c))


@compiled()
def least_that_reaches(here: Rows, count: int, top_p: float) -> np.float32:
    """Return the value among `here[:count]` at which the mass of the larger ones and itself reaches `top_p`.

    `here` is left in another order. 0 where all of them have less.
    """
    start, end, above = 0, count, 0.0
    while start < end:
        pivot = median(here[start], here[(start + end) // 2], here[end - 1])
        larger, i, behind, mass, same = start, start, end, 0.0, 0.0
        while i < behind:  # [start, larger) are above the pivot, [larger, i) equal to it, [behind, end) below
            value = here[i]
            if value > pivot:
                here[i] = here[larger]
                here[larger] = value
                mass += value
                larger += 1
                i += 1
            elif value == pivot:
                same += value
                i += 1
            else:
                behind -= 1
                here[i] = here[behind]
                here[behind] = value
        if above + mass >= top_p:
            end = larger
        elif above + mass + same >= top_p:
            return pivot
        else:
            above += mass + same
            start = behind
    return np.float32(0.0)


@compiled()
def least_of_row(p: Row, bits: Bits, wanted: float, here: Row, mass: Sums) -> np.float32:
    """Return the least probability in the smallest set of likeliest tokens of mass `wanted`, 0 where all have less.

    `p` is (V,), `bits` the same as integers; `here` (V + 1,) and `mass` (BINS,) are room to work in.
    """
    mass[:] = 0.0
    for j in range(len(p)):
        mass[min(max(TOP - (bits[j] >> SHIFT), 0), BINS - 1)] += p[j]
    above, where = 0.0, 0
    while where < BINS - 1 and above + mass[where] < wanted:
        above += mass[where]
        where += 1
    count = 0
    for j in range(len(p)):
        here[count] = p[j]
        count += min(max(TOP - (bits[j] >> SHIFT), 0), BINS - 1) == where
    return least_that_reaches(here, count, wanted - above)


@compiled()
def least_of_nucleus(p: Rows, top_p: float, least: Row) -> None:
    """Write to `least` (N,) the least probability in the nucleus of each row of `p` (N, V), which have the mass 1.

    Where rounding leaves a row with less than `top_p`, all of it is the nucleus, and 0 is written.
    """
    here, mass, bits = np.empty(p.shape[1] + 1, np.float32), np.empty(BINS), p.view(np.int32)
    for row in range(len(p)):
        least[row] = least_of_row(p[row], bits[row], top_p, here, mass)


@compiled({"reassoc"})
def mass_from(p: Row, least: np.float32) -> float:
    """Return the mass of the tokens that have at least `least`."""
    mass = 0.0
    for j in range(len(p)):
        mass += np.float64(p[j]) if p[j] >= least else 0.0
    return mass


@compiled()
def draw(p: Rows, top_p: float, uniform: Row, tokens: npt.NDArray[np.int64]) -> None:
    """Write to `tokens` (N,) one token of the nucleus of each row of `p` (N, V), of any mass, by `uniform` (N,)."""
    here, mass, bits = np.empty(p.shape[1] + 1, np.float32), np.empty(BINS), p.view(np.int32)
    for row in range(len(p)):
        least = np.float32(0.0)
        if top_p < 1.0:
            least = least_of_row(p[row], bits[row], top_p * mass_from(p[row], np.float32(0.0)), here, mass)
        target, passed = uniform[row] * mass_from(p[row], least), 0.0
        for j in range(p.shape[1]):
            if p[row, j] >= least and p[row, j] > 0:
                passed += p[row, j]
                tokens[row] = j  # the last one where rounding leaves the target unreached
                if passed > target:
                    break
