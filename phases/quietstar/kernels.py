"""The nucleus of many distributions without ordering any of them, compiled by Numba for the CPU.

The mass of tokens is summed in bins by the leading bits of their probability, which are ordered as the values are. Only
the bin in which the wanted mass is reached is looked into: a quickselect by mass parts its tokens around pivots. Two
passes over a row, where a full order takes eleven. Sums are kept in float64.
"""

import numpy as np
import numpy.typing as npt

from phases.evomerge.methods.kernels import compiled

Rows = npt.NDArray[np.float32]
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
def least_of_nucleus(p: Rows, top_p: float, least: Rows) -> None:
    """Write to `least` (N,) the least probability in the smallest set of likeliest tokens with the mass `top_p`.

    `p` is (N, V). Where rounding leaves a row with less mass than that, all of it is the nucleus, and 0 is written.
    """
    here, mass = np.empty(p.shape[1] + 1, np.float32), np.empty(BINS)
    bits = p.view(np.int32)
    for row in range(len(p)):
        mass[:] = 0.0
        for j in range(p.shape[1]):
            mass[min(max(TOP - (bits[row, j] >> SHIFT), 0), BINS - 1)] += p[row, j]
        above, wanted = 0.0, 0
        while wanted < BINS - 1 and above + mass[wanted] < top_p:
            above += mass[wanted]
            wanted += 1
        count = 0
        for j in range(p.shape[1]):
            here[count] = p[row, j]
            count += min(max(TOP - (bits[row, j] >> SHIFT), 0), BINS - 1) == wanted
        least[row] = least_that_reaches(here, count, top_p - above)
