"""The attention window: keys and values of the current segment and the one before, for each ponder step and layer.

At ponder step n a token sees every other one as of step min(n, the steps that one ran). `CachedWindow` keeps that for
inference, updated in place, so that a token's cost does not depend on the length of the text and rows are computed
without copying their past. `SegmentWindow` does the same for training, differentiably and a segment at a time. Beside
keys and values, both keep what the memory's convolution over the latest tokens needs.

Shapes: B rows, W places of the window, H heads, K head dimension, D = H * K, N tokens of a step; see `places.py`.
"""

from typing import Protocol

import torch
from torch import Tensor

from phases.cognate.attention import attend
from phases.cognate.memory import CONV_WIDTH
from phases.cognate.places import Places


class Window(Protocol):
    """What a ponder step asks of its window."""

    def attend(self, step: int, layer: int, places: Places, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store `k`, `v` (N, H, K) and return what `q` attends to, (N, D)."""

    def latest(self, step: int, places: Places, x: Tensor) -> list[Tensor]:
        """Store `x` (N, D) and return, for each token, those of the tokens 3, 2, 1 and 0 places back, (N, D) each."""


class UnrolledWindow(Window, Protocol):
    """A window in which all tokens run every step."""

    active: Tensor | None  # (B, T), tokens that have not halted before the coming step; None where none has


class CachedWindow:
    """A window of fixed size. Places below `segment_len` hold the segment before, those above the current one."""

    def __init__(self, like: Tensor, batch: int, n_steps: int, n_layers: int, n_heads: int, segment_len: int) -> None:
        """Allocate for tokens of the width, type and device of `like` (..., D)."""
        d_model = like.shape[-1]
        self.segment_len = segment_len
        self.position = 0  # tokens that came before the current piece
        size = (n_steps, n_layers, batch, n_heads, 2 * segment_len, d_model // n_heads)
        self.keys, self.values = like.new_empty(size), like.new_empty(size)
        self.inputs = like.new_zeros(n_steps, batch, 2 * segment_len, d_model)

    @property
    def past(self) -> int:
        """Tokens in the window before the current piece."""
        return self.position % self.segment_len + (self.segment_len if self.position >= self.segment_len else 0)

    @property
    def _end(self) -> int:
        return self.segment_len + self.position % self.segment_len

    def attend(self, step: int, layer: int, places: Places, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store `k`, `v` (N, H, K) and return what `q` attends to, (N, D)."""
        keys, values = self.keys[step, layer], self.values[step, layer]  # (B, H, W, K)
        end = self._end + places.shape[1]
        if places.complete:
            keys[:, :, self._end : end] = k.unflatten(0, places.shape).transpose(1, 2)
            values[:, :, self._end : end] = v.unflatten(0, places.shape).transpose(1, 2)
        else:
            columns = places.columns + self._end
            keys[places.rows, :, columns], values[places.rows, :, columns] = k, v
        window = slice(self._end - self.past, end)
        attended = [
            attend(
                group.rectangle(q).transpose(1, 2),
                keys[group.rows, :, window],
                values[group.rows, :, window],
                group.mask,
            )
            for group in places.groups
        ]
        return _flat(attended)

    def latest(self, step: int, places: Places, x: Tensor) -> list[Tensor]:
        """Store `x` (N, D) and return, for each token, those of the tokens 3, 2, 1 and 0 places back, (N, D) each."""
        inputs, columns = self.inputs[step], places.columns + self._end
        inputs[places.rows, columns] = x
        return [inputs[places.rows, columns - back] for back in range(CONV_WIDTH - 1, 0, -1)] + [x]

    def seen(self, step: int, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, H, W, K) that the next token sees at a ponder step."""
        window = slice(self._end - self.past, self._end)
        return self.keys[step, layer][:, :, window], self.values[step, layer][:, :, window]

    def seen_inputs(self, step: int) -> Tensor:
        """Return what `latest` stored of the tokens that the next one sees, (B, W, D)."""
        return self.inputs[step][:, self._end - self.past : self._end]

    def settle(self, step: int, places: Places) -> None:
        """Let the tokens at `places` stand in all later steps with what they have at `step`."""
        rows, columns = places.rows, places.columns + self._end
        self.inputs[step + 1 :, rows, columns] = self.inputs[step, rows, columns]
        for cache in (self.keys, self.values):
            if places.shape[1] == 1:  # runs of adjacent rows, as slices: 1.6 times as fast as indices
                here = cache[:, :, :, :, self._end]
                for group in places.groups:
                    here[step + 1 :, :, group.rows] = here[step, :, group.rows]
            else:
                cache[step + 1 :, :, rows, :, columns] = cache[step][:, rows, :, columns].unsqueeze(1)

    def advance(self, length: int) -> None:
        """Take a piece of `length` tokens as read; at the end of a segment, move it to where the one before was."""
        self.position += length
        if self.position % self.segment_len == 0:
            for cache, axis in ((self.keys, 4), (self.values, 4), (self.inputs, 2)):
                before, current = cache.split(self.segment_len, dim=axis)
                before.copy_(current)

    def select(self, rows: Tensor) -> "CachedWindow":
        """Return a copy that holds the rows with the indices `rows`."""
        copy = object.__new__(CachedWindow)
        copy.segment_len, copy.position = self.segment_len, self.position
        copy.keys, copy.values, copy.inputs = self.keys[:, :, rows], self.values[:, :, rows], self.inputs[:, rows]
        return copy


class SegmentWindow:
    """A window for training: every token runs every step, but others see it as of the step at which it would halt."""

    def __init__(self) -> None:
        self.active: Tensor | None = None  # (B, T), tokens that have not halted; None where none has
        self._before: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by step and layer, (B, H, T, K)
        self._current: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._inputs_before: dict[int, Tensor] = {}  # by step, (B, T, D)
        self._inputs: dict[int, Tensor] = {}

    def attend(self, step: int, layer: int, places: Places, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store `k`, `v` (N, H, K) and return what `q` attends to, (N, D)."""
        q, k, v = (x.unflatten(0, places.shape).transpose(1, 2) for x in (q, k, v))
        if self.active is not None:
            seen = self.active[:, None, :, None]
            k_then, v_then = self._current[step - 1, layer]
            k, v = torch.where(seen, k, k_then), torch.where(seen, v, v_then)
        self._current[step, layer] = k, v
        return _flat([attend(q, *self.seen(step, layer), places.groups[0].mask)])

    def latest(self, step: int, places: Places, x: Tensor) -> list[Tensor]:
        """Store `x` (N, D) and return, for each token, those of the tokens 3, 2, 1 and 0 places back, (N, D) each."""
        own = x.unflatten(0, places.shape)
        seen = own if self.active is None else torch.where(self.active[:, :, None], own, self._inputs[step - 1])
        self._inputs[step] = seen
        back = CONV_WIDTH - 1
        before = self._inputs_before.get(step, seen.new_zeros(seen.shape[0], back, seen.shape[2]))[:, -back:]
        padded = torch.cat([before, seen], dim=1)
        return [padded[:, i : i + seen.shape[1]].flatten(0, 1) for i in range(back)] + [x]

    def seen(self, step: int, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, H, W, K) of the segment before and the current one at a ponder step."""
        if (step, layer) not in self._before:
            return self._current[step, layer]
        (k_before, v_before), (k, v) = self._before[step, layer], self._current[step, layer]
        return torch.cat([k_before, k], dim=2), torch.cat([v_before, v], dim=2)

    def seen_inputs(self, step: int) -> Tensor:
        """Return what `latest` stored of the tokens of both segments, (B, W, D)."""
        parts = [self._inputs_before[step]] if step in self._inputs_before else []
        return torch.cat([*parts, self._inputs[step]], dim=1)

    def advance(self) -> None:
        """Start the next segment."""
        self._before, self._current = self._current, {}
        self._inputs_before, self._inputs = self._inputs, {}
        self.active = None


def _flat(attended: list[Tensor]) -> Tensor:
    """Return (N, D) of the groups' (R, H, A, K)."""
    parts = [part.transpose(1, 2).flatten(2).flatten(0, 1) for part in attended]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
