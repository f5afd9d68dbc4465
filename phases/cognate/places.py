"""Which tokens of a piece of text a ponder step computes.

A step works on a flat list of N tokens. What depends on the row they come from (attention, memory) is done group by
group: a group is a range of adjacent rows with equally many tokens each, so that its part of the cache is a view and
nothing is copied. All tokens make one group; single tokens make one per run of adjacent rows; else each row is one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Tokens [first, last) of the flat list, those of `rows`."""

    rows: slice
    tokens: slice
    length: int  # tokens of each row
    mask: Tensor | None  # (length, W), true where a token may attend to a window of W; None allows all

    def rectangle(self, x: Tensor) -> Tensor:
        """Return this group's part (R, A, ...) of `x` (N, ...)."""
        part: Tensor = x[self.tokens].unflatten(0, (-1, self.length))
        return part


class Places(NamedTuple):
    """The N tokens that a step computes, by row and then by column, of a piece (B, T)."""

    rows: Tensor  # (N,)
    columns: Tensor  # (N,)
    shape: tuple[int, int]  # B, T
    groups: tuple[Group, ...]

    @property
    def complete(self) -> bool:
        """Whether all tokens of the piece are among them."""
        return len(self.rows) == self.shape[0] * self.shape[1]


def everywhere(shape: tuple[int, int], past: int, device: torch.device) -> Places:
    """Return all places of a piece (B, T) that comes behind `past` tokens."""
    rows, columns = torch.ones(shape, dtype=torch.bool, device=device).nonzero(as_tuple=True)
    mask = _mask(torch.arange(shape[1], device=device), past, shape[1])
    return Places(rows, columns, shape, (Group(slice(0, shape[0]), slice(0, len(rows)), shape[1], mask),))


def where(active: Tensor, past: int) -> Places:
    """Return the places at which `active` (B, T) is true, in a piece that comes behind `past` tokens."""
    batch, length = active.shape
    rows, columns = active.nonzero(as_tuple=True)
    groups, start = list[Group](), 0
    for first, last, count in _ranges(active.sum(1).tolist(), merge=length == 1):
        end = start + (last - first) * count
        groups.append(Group(slice(first, last), slice(start, end), count, _mask(columns[start:end], past, length)))
        start = end
    return Places(rows, columns, (batch, length), tuple(groups))


def _ranges(counts: list[int], merge: bool) -> Iterator[tuple[int, int, int]]:
    """Yield (first row, last row + 1, tokens in each) for rows with any, adjacent ones together where `merge`."""
    row = 0
    while row < len(counts):
        last = row + 1
        while merge and last < len(counts) and counts[last] == counts[row]:
            last += 1
        if counts[row]:
            yield row, last, counts[row]
        row = last


def _mask(columns: Tensor, past: int, length: int) -> Tensor | None:
    if length == 1:
        return None
    return torch.arange(past + length, device=columns.device) <= past + columns.unsqueeze(-1)
