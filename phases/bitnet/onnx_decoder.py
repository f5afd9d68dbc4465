"""Reading on with a plain decoder: its attention appends to the cache by itself, so a token costs one bare run.

Shapes: T tokens, V vocabulary, L layers, G key and value heads, W places of the cache, P width of a padded head.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from phases.bitnet.onnx_binding import (
    PLACES,
    Floats,
    Read,
    StoredRows,
    bind,
    bind_output,
    checked,
    rotation,
    whole_places,
)
from phases.bitnet.onnx_heads import padded_width
from phases.bitnet.onnx_prefill import MANY
from phases.bitnet.packed import Architecture


class DecoderStream:
    """One text as it is read on. `position` may be set back: what was read behind it is then forgotten."""

    def __init__(
        self, architecture: Architecture, sessions: list[ort.InferenceSession], rows: StoredRows | None
    ) -> None:
        self.architecture, self.position = architecture, 0
        self._rows, self._sessions = rows, sessions
        kinds = {value.name: value.type for value in sessions[0].get_inputs()}
        self._cached = np.int8 if kinds["key_0"] == "tensor(int8)" else np.float32
        self._bindings = [session.io_binding() for session in sessions]
        self._last_place, self._count = np.zeros(1, np.int32), np.zeros((), np.int32)
        self._cache = self._make_cache(PLACES)

    def read(self, tokens: list[int]) -> Read:
        """Read on and return the logits behind each token. Raises `ArtifactError` for an id beyond the vocabulary."""
        ids = checked(tokens, self.architecture.vocab_size)
        end = self.position + len(ids)
        self._make_room(end)
        self._last_place[0], self._count[...] = end - 1, end
        which = len(self._sessions) - 1 if len(ids) >= MANY else 0
        binding, logits = self._bindings[which], np.empty((len(ids), self.architecture.vocab_size), np.float32)
        bind(binding, "tokens", ids)
        if which == 0 and self._rows is not None:
            rows = self._rows(ids)
            bind(binding, self._rows.name, rows)
        bind_output(binding, "logits", logits)
        self._sessions[which].run_with_iobinding(binding)
        self.position = end
        return Read(logits, np.ones_like(ids))

    def largest(self) -> Floats:
        """Return the largest magnitude of each channel in keys and values as they are held, (L, 2, G, P)."""
        largest: Floats = np.abs(self._cache[..., : self.position, :]).max(-2)
        return largest

    def _make_room(self, places: int) -> None:
        """Enlarge the cache where it has fewer places."""
        if places <= (before := self._cache.shape[-2]):
            return
        cache = self._make_cache(whole_places(places))
        cache[..., :before, :] = self._cache
        self._cache = cache

    def _make_cache(self, places: int) -> npt.NDArray[Any]:
        """Allocate keys and values (L, 2, G, W, P) and bind them, as inputs and as outputs, with all places' turns."""
        a = self.architecture
        width = padded_width(a.head_dim)
        cache = np.zeros((a.n_layers, 2, a.n_kv_heads, places, width), self._cached)
        # Queries and keys are both turned by these, so scores come out scaled by 1 / sqrt(K), as attention has them.
        self._turns = [np.zeros((places, width // 2), np.float32) for _ in range(2)]
        for turns, values in zip(self._turns, rotation(np.arange(places), a.head_dim, a.rope_theta), strict=True):
            turns[:, : a.head_dim // 2] = values * a.head_dim**-0.25
        for binding in self._bindings:
            for layer in range(a.n_layers):
                for kind, name in enumerate(("key", "value")):
                    bind(binding, f"{name}_{layer}", cache[layer, kind][None])
                    bind_output(binding, f"present_{name}_{layer}", cache[layer, kind][None])
            for name, value in zip(("cos", "sin"), self._turns, strict=True):
                bind(binding, name, value)
            bind(binding, "last_place", self._last_place)
            bind(binding, "count", self._count)
        return cache
