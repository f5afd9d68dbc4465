"""Reading on with a plain decoder: its attention appends to the cache by itself, so a token costs one bare run.

Shapes: T tokens, V vocabulary, L layers, G key and value heads, P width of a padded head.
"""

import numpy as np
import onnxruntime as ort

from phases.bitnet.onnx_binding import Read, StoredRows, bind, bind_output, checked
from phases.bitnet.onnx_cache import Cache, Turns
from phases.bitnet.onnx_prefill import MANY
from phases.bitnet.packed import Architecture


class DecoderStream:
    """One text as it is read on. `position` may be set back: what was read behind it is then forgotten."""

    def __init__(
        self, architecture: Architecture, sessions: list[ort.InferenceSession], rows: StoredRows | None
    ) -> None:
        self.architecture, self.position = architecture, 0
        self._rows, self._sessions = rows, sessions
        self._last_place, self._count = np.zeros(1, np.int32), np.zeros((), np.int32)
        self.caches = [Cache(architecture, sessions)]
        bindings = self.caches[0].bindings
        self._turns = Turns(architecture, bindings)
        self._turns.set(self.caches[0].places)
        for binding in bindings:
            bind(binding, "last_place", self._last_place)
            bind(binding, "count", self._count)

    def read(self, tokens: list[int]) -> Read:
        """Read on and return the logits behind each token. Raises `ArtifactError` for an id beyond the vocabulary."""
        ids = checked(tokens, self.architecture.vocab_size)
        end, cache = self.position + len(ids), self.caches[0]
        if end > cache.places:
            cache.make_room(end)
            self._turns.set(cache.places)
        self._last_place[0], self._count[...] = end - 1, end
        which = len(self._sessions) - 1 if len(ids) >= MANY else 0
        binding, logits = cache.bindings[which], np.empty((len(ids), self.architecture.vocab_size), np.float32)
        bind(binding, "tokens", ids)
        if which == 0 and self._rows is not None:
            rows = self._rows(ids)
            bind(binding, self._rows.name, rows)
        bind_output(binding, "logits", logits)
        self._sessions[which].run_with_iobinding(binding)
        self.position = end
        return Read(logits, np.ones_like(ids))
