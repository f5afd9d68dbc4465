"""Runs an exported TinyTitan: carries caches and memory from piece to piece, and writes memory between segments.

One piece of text, be it a prompt or a single token, is one run of the graph, whose loop ponders. Here is only what
happens between runs: what the graph computed goes into the caches, texts are cut where segments end, and there the
window moves on and the model's own code writes memory.

Shapes: as in `titan_graph.py`; W places of the cache, those of the segment before first and then the current one's.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load

from phases.baking.optimise.session import Feeds, SessionSettings, open_session
from phases.baking.optimise.titan_graph import BACK
from phases.bitnet.memory_writer import MemoryWriter, surprise_of
from phases.bitnet.packed import Architecture
from phases.cognate.titan import TitanConfig
from phases.errors import ArtifactError, ConfigError

ARCHITECTURE, MEMORY = "architecture", "memory"  # keys of the file's metadata
OUTPUTS = ("logits", "outputs", "steps", "keys", "values", "queries")
_PLACES = 64  # that a cache grows by
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Read:
    """What a model made of tokens."""

    logits: Array  # (B, T, V), of the tokens that follow
    steps: Array  # (B, T), ponder steps that each took


class OnnxTitan:
    """A file that `export_titan` wrote, or a quantised copy of it. Any number of streams read with it."""

    def __init__(self, path: Path, settings: SessionSettings | None = None) -> None:
        """Open a file. Raises `ArtifactError` where it is not one of those."""
        self.session = open_session(path, settings or SessionSettings())
        properties = self.session.get_modelmeta().custom_metadata_map
        outputs = tuple(output.name for output in self.session.get_outputs())
        if outputs != OUTPUTS or not {ARCHITECTURE, MEMORY} <= properties.keys():
            raise ArtifactError(f"{path}: not an ONNX file of a whole TinyTitan; write one with `export_titan`")
        architecture = Architecture.model_validate_json(properties[ARCHITECTURE])
        assert architecture.titan is not None
        self.config: TitanConfig = architecture.titan
        self.writer = MemoryWriter(architecture, load(base64.b64decode(properties[MEMORY])))

    def stream(self, batch: int = 1) -> "TitanStream":
        """Return `batch` rows that have read nothing."""
        return TitanStream(self, batch)


class TitanStream:
    """Rows of text as they are read on, all at the same position."""

    def __init__(self, model: OnnxTitan, batch: int) -> None:
        c = model.config
        self.model, self.batch, self.position = model, batch, 0
        size = (c.train_ponder_steps, c.n_layers, batch, c.n_heads, 0, c.d_model // c.n_heads)
        self._keys, self._values = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self._queries = np.zeros((c.train_ponder_steps, batch, BACK, c.d_model), np.float32)
        self._outputs = np.zeros((batch, c.segment_len, c.d_model), np.float32)
        self._surprise = np.zeros((batch, c.segment_len), np.float32)
        self._prediction: Array | None = None  # (B, V), logits of the next token
        self._memory = model.writer.empty(batch)
        self._slots = model.writer.slots(self._memory)

    def read(self, tokens: Array) -> Read:
        """Read `tokens` (B, T) on. Raises `ConfigError` for ids beyond the vocabulary, or none."""
        config, ids = self.model.config, np.asarray(tokens, np.int64)
        if ids.ndim != 2 or ids.shape[0] != self.batch or not ids.shape[1]:
            raise ConfigError.of("tokens", ids.shape, "not the stream's shape", f"give ({self.batch}, at least 1)")
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            raise ConfigError.of("tokens", int(ids.max()), "no such id", f"ids are 0 to {config.vocab_size - 1}")
        parts = list[Read]()
        while ids.shape[1]:
            room = config.segment_len - self.position % config.segment_len
            parts.append(self._piece(ids[:, :room]))
            ids = ids[:, room:]
        logits, steps = (np.concatenate([getattr(p, name) for p in parts], 1) for name in ("logits", "steps"))
        return Read(logits, steps)

    def greedy(self, prompt: Array, count: int) -> Array:
        """Read `prompt` (B, T) and return the `count` tokens (B, count) that are likeliest, each behind those before.

        The last of them is not read.
        """
        chosen, unread = np.zeros((self.batch, count), np.int64), np.asarray(prompt)
        for place in range(count):
            chosen[:, place] = self.read(unread).logits[:, -1].argmax(-1)
            unread = chosen[:, place : place + 1]
        return chosen

    def feeds(self, tokens: Array) -> Feeds:
        """Return the graph's inputs for a piece `tokens` (B, T) that comes next."""
        return {
            "tokens": tokens,
            "position": np.array(self.position),
            "seen": np.arange(self._keys.shape[4]) < self._filled,
            "past_keys": self._keys,
            "past_values": self._values,
            "past_queries": self._queries,
            **self._slots,
        }

    def _piece(self, tokens: Array) -> Read:
        """Read tokens of one segment."""
        found = dict(zip(OUTPUTS, self.model.session.run(OUTPUTS, self.feeds(tokens)), strict=True))
        new = slice(self._filled, self._filled + tokens.shape[1])
        self._make_room(new.stop)
        self._keys[..., new, :], self._values[..., new, :] = found["keys"], found["values"]
        self._queries = found["queries"]
        surprise = surprise_of(tokens, found["logits"], self._prediction)
        self._prediction = found["logits"][:, -1]
        self._absorb(found["outputs"], surprise)
        return Read(found["logits"], found["steps"])

    def _absorb(self, outputs: Array, surprise: Array) -> None:
        """Take a piece into the state; at the end of a segment, write memory and move the window."""
        size, length = self.model.config.segment_len, outputs.shape[1]
        start = self.position % size
        self._outputs[:, start : start + length], self._surprise[:, start : start + length] = outputs, surprise
        if start + length == size:
            end = self._filled + length
            for cache in (self._keys, self._values):
                cache[..., :size, :] = cache[..., end - size : end, :]
            self._memory = self.model.writer.write(self._memory, self._outputs, self._surprise)
            self._slots = self.model.writer.slots(self._memory)
        self.position += length

    @property
    def _filled(self) -> int:
        """Places of the cache that hold what the next token sees."""
        size = self.model.config.segment_len
        return self.position % size + (size if self.position >= size else 0)

    def _make_room(self, places: int) -> None:
        """Enlarge the caches where they have fewer places."""
        if (missing := places - self._keys.shape[4]) > 0:
            width = [(0, 0)] * 6
            width[4] = (0, -(-missing // _PLACES) * _PLACES)
            self._keys, self._values = np.pad(self._keys, width), np.pad(self._values, width)
