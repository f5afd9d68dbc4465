"""What a TinyTitan carries from token to token: the attention window, the memory, and the segment so far.

A state is updated in place as its model reads on; `select` gives an independent copy to branch off from.
"""

from dataclasses import dataclass

from torch import Tensor

from phases.cognate.memory import MemoryState
from phases.cognate.window import CachedWindow


@dataclass
class State:
    """B rows at the same position in their texts."""

    window: CachedWindow
    memory: MemoryState
    outputs: Tensor  # (B, segment_len, D), of the current segment's tokens so far, to be written at its end
    surprise: Tensor  # (B, segment_len), nats of those tokens
    prediction: Tensor | None  # (B, V), logits of the next token; None before the first

    @property
    def position(self) -> int:
        """Tokens read so far."""
        return self.window.position

    def select(self, rows: Tensor) -> "State":
        """Return a copy with the rows of the given indices, e.g. those that still generate."""
        prediction = None if self.prediction is None else self.prediction[rows]
        memory = self.memory.select(rows)
        return State(self.window.select(rows), memory, self.outputs[rows], self.surprise[rows], prediction)
