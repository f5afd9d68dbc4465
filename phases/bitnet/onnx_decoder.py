"""Reading on with a plain decoder: its attention appends to the cache by itself, so a token costs one bare run.

Shapes: T tokens, D model width, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from phases.bitnet.onnx_binding import Floats, Ints, Read, StoredRows, bind, bind_output, checked
from phases.bitnet.onnx_cache import Cache, Turns
from phases.bitnet.onnx_prefill import MANY
from phases.bitnet.packed import Architecture


@dataclass
class _Buffers:
    """What is bound for a run."""

    ids: Ints  # (T,)
    rows: Floats  # (T, D), of the embedding; none where the graph looks them up
    logits: Floats  # (T, V)


class DecoderStream:
    """One text as it is read on. `position` may be set back: what was read behind it is then forgotten."""

    def __init__(
        self, architecture: Architecture, sessions: list[ort.InferenceSession], rows: StoredRows | None
    ) -> None:
        self.architecture, self.position = architecture, 0
        self._rows, self._sessions = rows, [sessions[0], *sessions]  # for one token, for few and for many
        self._last_place, self._count = np.zeros(1, np.int32), np.zeros((), np.int32)
        self.caches = [Cache(architecture, self._sessions)]
        bindings = self.caches[0].bindings
        self._turns = Turns(architecture, bindings)
        self._turns.set(self.caches[0].places)
        for binding in bindings:
            bind(binding, "last_place", self._last_place)
            bind(binding, "count", self._count)
        self._one = self._bind(0, np.zeros(1, np.int64))

    def read(self, tokens: list[int]) -> Read:
        """Read on and return the logits behind each token. Raises `ArtifactError` for an id beyond the vocabulary."""
        ids = checked(tokens, self.architecture.vocab_size)
        end, cache = self.position + len(ids), self.caches[0]
        if end > cache.places:
            cache.grow(end)
            self._turns.set(cache.places)
        self._last_place[0], self._count[...] = end - 1, end
        which = 0 if len(ids) == 1 else len(self._sessions) - 1 if len(ids) >= MANY else 1
        buffers = self._fill_one(ids) if which == 0 else self._bind(which, ids)
        self._sessions[which].run_with_iobinding(cache.bindings[which])
        self.position = end
        return Read(buffers.logits if which else buffers.logits.copy(), np.ones(len(ids), np.int64))

    def _fill_one(self, ids: Ints) -> _Buffers:
        """Return what is bound once: a run drives all else from the processor's cache, so each line is dear."""
        self._one.ids[...] = ids
        if self._rows is not None:
            self._one.rows[...] = self._rows(ids)
        return self._one

    def _bind(self, which: int, ids: Ints) -> _Buffers:
        """Bind tokens, their rows where the session takes those, and room for their logits."""
        binding = self.caches[0].bindings[which]
        logits = np.empty((len(ids), self.architecture.vocab_size), np.float32)
        rows = np.zeros((0, 0), np.float32)
        bind(binding, "tokens", ids)
        if self._sessions[which] is self._sessions[0] and self._rows is not None:
            rows = self._rows(ids)
            bind(binding, self._rows.name, rows)
        bind_output(binding, "logits", logits)
        return _Buffers(ids, rows, logits)
