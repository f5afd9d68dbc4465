"""Running an exported file: caches bound once and written in place, ponder steps, and the long-term memory.

The file holds everything: weights, the architecture and, for a TinyTitan, what its memory writes with (in the metadata,
for that part is not in the graph). What a token sees is what it sees in `phases.cognate.titan`: the same window, the
same halting, the same memory, so logits agree to rounding whether tokens come one by one or all at once.

Shapes: T tokens of a piece, A of them still pondering, V vocabulary, W places of the cache.
"""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states
from safetensors.torch import load

from phases.bitnet.memory_writer import MemoryWriter, surprise_of
from phases.bitnet.onnx_binding import PLACES, Floats, Ints, Read, StoredRows, bind, checked, rotation, whole_places
from phases.bitnet.onnx_decoder import DecoderStream
from phases.bitnet.onnx_map import with_mapped_weights
from phases.bitnet.onnx_prefill import MANY, widened
from phases.bitnet.packed import Architecture
from phases.cognate.memory import CONV_WIDTH, MemoryState
from phases.errors import ArtifactError

_NO_FLASH = "ORT_GQA_DISABLE_FLASH_ATTENTION"
_FAILURES = (states.Fail, states.InvalidArgument, states.InvalidProtobuf, states.NoSuchFile, states.InvalidGraph)


@dataclass
class _Piece:
    """Tokens of one segment under way."""

    ids: Ints  # (T,)
    hidden: Floats  # (T, D), of the last pass
    going_on: Floats  # (T,), chance of not having halted
    rotation: list[Floats]  # cosines and sines, (T, K / 2)
    start: int  # places of the cache that all its tokens see, from `start` to before `end`
    end: int
    rows: Floats | None  # (T, D), of the embedding; None where the graph looks them up


class OnnxModel:
    """A session and its metadata. Any number of `Stream`s read with it, one at a time."""

    def __init__(self, path: Path, threads: int = 1, *, fast_prefill: bool = False) -> None:
        """Open a file. `fast_prefill` reads many tokens at once faster, and takes more memory (`onnx_prefill.py`).

        An exact file has no use for it. Raises `ArtifactError` where the file is not one of ours.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; constants that served folded nodes are left over, which is a warning
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            with TemporaryDirectory() as folder:
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
                mapped = with_mapped_weights(path, Path(folder))
                model = str(path) if mapped is None else mapped.model
                with _without_flash_attention():
                    self.sessions = [ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])]
            properties = self.sessions[0].get_modelmeta().custom_metadata_map
            self.architecture = Architecture.model_validate_json(properties["architecture"])
            self.exact = bool(json.loads(properties["exact"]))
            self.floats: type[np.floating[Any]] = np.float64 if self.exact else np.float32
            if fast_prefill and not self.exact and mapped is not None:
                self.sessions.append(ort.InferenceSession(widened(path), options, providers=["CPUExecutionProvider"]))
        except (KeyError, ValueError, OSError, *_FAILURES) as error:
            raise ArtifactError(f"{path}: not an ONNX file that `forge quantize` wrote ({error})") from error
        self.rows = None if mapped is None or mapped.rows is None else StoredRows(path, mapped.rows)
        self.outputs = [output.name for output in self.sessions[0].get_outputs()]
        self.grouped = all(value.name != "mask" for value in self.sessions[0].get_inputs())
        self.writer: MemoryWriter | None = None
        if self.architecture.titan is not None:
            tensors = load(base64.b64decode(properties["memory"]))
            self.writer = MemoryWriter(self.architecture, tensors, exact=self.exact)

    def stream(self) -> "AnyStream":
        """Return a stream that has read nothing."""
        if self.grouped:
            return DecoderStream(self.architecture, self.sessions, self.rows)
        return Stream(self)


class Stream:
    """One text as it is read on: caches, memory, and the prediction of the next token."""

    def __init__(self, model: OnnxModel) -> None:
        self.model, self.position = model, 0
        a, titan = model.architecture, model.architecture.titan
        self.prediction: Floats | None = None
        self._bindings = [[session.io_binding() for _ in range(a.steps)] for session in model.sessions]
        self._segment = titan.segment_len if titan else 0
        self._outputs: Floats = np.zeros((self._segment, a.d_model), model.floats)
        self._surprise = np.zeros(self._segment, np.float32)
        # Places before the segment under way: the one before it, or what the first queries' convolution looks back at.
        self._older = CONV_WIDTH - 1 if titan else 0
        self._cache = [self._make_cache(step, PLACES) for step in range(a.steps)]
        self._queries = self._make_queries(PLACES)
        if model.writer is not None:
            self._memory = model.writer.empty()
            self._bind_memory(self._memory)

    def read(self, tokens: list[int]) -> Read:
        """Read on and return the logits behind each token. Raises `ArtifactError` for an id beyond the vocabulary."""
        ids = checked(tokens, self.model.architecture.vocab_size)
        parts = list[Read]()
        while len(ids):
            room = self._segment - self.position % self._segment if self._segment else len(ids)
            parts.append(self._piece(ids[:room]))
            ids = ids[room:]
        return Read(np.concatenate([p.logits for p in parts]), np.concatenate([p.steps for p in parts]))

    def _piece(self, ids: Ints) -> Read:
        """Read tokens of one segment."""
        a = self.model.architecture
        self._make_room(self._places()[1] + len(ids))
        rows = None if self.model.rows is None else self.model.rows(ids)
        turns = rotation(np.arange(self.position, self.position + len(ids)), a.head_dim, a.rope_theta)
        floats = self.model.floats
        hidden, going_on = np.zeros((len(ids), a.d_model), floats), np.ones(len(ids), floats)
        piece = _Piece(ids, hidden, going_on, [part.astype(floats) for part in turns], *self._places(), rows)
        steps = np.zeros_like(ids)
        normed = np.empty((len(ids), a.d_model), floats)
        logits = np.empty((len(ids), a.vocab_size), floats)
        active, end = np.arange(len(ids)), piece.end
        for step in range(a.steps):
            found = self._run(step, piece, active)
            cache = self._cache[step]
            cache[..., end + active, :] = found["present"].reshape(*cache.shape[:-2], len(active), -1)
            halted = found.get("halted", np.ones(len(active), np.bool_))
            done = active[halted]
            logits[done], normed[done], steps[done] = found["logits"], found["normed"], step + 1
            if a.titan is not None:
                piece.hidden[active], piece.going_on[active] = found["hidden_out"], found["going_on_out"]
                self._queries[step, end + active] = found["queries"]
                self._queries[step + 1 :, end + done] = self._queries[step, end + done]
                for later in self._cache[step + 1 :]:
                    later[..., end + done, :] = cache[..., end + done, :]
            active = active[~halted]
            if not len(active):
                break
        self._absorb(ids, logits, normed)
        return Read(logits, steps)

    def _run(self, step: int, piece: "_Piece", active: Ints) -> dict[str, Any]:
        """Take one pass with the tokens at the columns `active` and return the outputs by name."""
        a = self.model.architecture
        feeds: dict[str, npt.NDArray[Any]] = {
            "tokens": piece.ids[active],
            "cos": piece.rotation[0][active],
            "sin": piece.rotation[1][active],
            "mask": self._mask(active, piece),
        }
        if a.titan is not None:
            feeds |= {
                "hidden": piece.hidden[active],
                "going_on": piece.going_on[active],
                "step": np.array(step, np.int64),
                "last": np.array(step == a.steps - 1),
                "query_index": self._query_index(active, piece.end),
            }
        which = len(self.model.sessions) - 1 if len(active) >= MANY else 0
        if which == 0 and self.model.rows is not None and piece.rows is not None:
            feeds[self.model.rows.name] = piece.rows[active]
        session, binding = self.model.sessions[which], self._bindings[which][step]
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for name in self.model.outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        return dict(zip(self.model.outputs, binding.copy_outputs_to_cpu(), strict=True))

    def _mask(self, active: Ints, piece: "_Piece") -> Floats:
        """Return 0 where a token may look and -inf elsewhere, (A, W + A)."""
        width, length = self._cache[0].shape[-2], len(piece.ids)
        seen = np.zeros((len(active), width + len(active)), np.bool_)
        seen[:, piece.start : piece.end] = True
        if len(active) < length:  # those that have halted are in the cache already
            columns = np.setdiff1d(np.arange(length), active)
            seen[:, piece.end + columns] = columns <= active[:, None]
        seen[:, width:] = active <= active[:, None]
        return np.where(seen, self.model.floats(0), self.model.floats(-np.inf))

    def _query_index(self, active: Ints, end: int) -> Ints:
        """Return where the memory queries of each token and the three before it are, (A, 4): in the cache or new."""
        index = end + active[:, None] - np.arange(CONV_WIDTH - 1, -1, -1)
        new = np.full(self._queries.shape[1], -1)
        new[end + active] = np.arange(len(active))
        fresh = new[index]
        return np.where(fresh >= 0, fresh + self._queries.shape[1], index)

    def _places(self) -> tuple[int, int]:
        """Return the places of the cache that a next token sees, from the first to before the last."""
        if not self._segment:
            return 0, self.position
        return (0 if self.position >= self._segment else self._older), self._older + self.position % self._segment

    def _make_room(self, places: int) -> None:
        """Enlarge the caches that have fewer places, one by one, so that only one is held twice."""
        if places <= (before := self._cache[0].shape[-2]):
            return
        places = whole_places(places)
        for step in range(len(self._cache)):
            cache = self._make_cache(step, places)
            cache[..., :before, :] = self._cache[step]
            self._cache[step] = cache
        queries = self._make_queries(places)
        queries[:, : self._queries.shape[1]] = self._queries
        self._queries = queries

    def _absorb(self, ids: Ints, logits: Floats, normed: Floats) -> None:
        """Take a piece into the state; at the end of a segment, write memory and move the window."""
        before = self.prediction
        self.prediction = logits[-1].copy()
        if self.model.writer is None:
            self.position += len(ids)
            return
        start = self.position % self._segment
        nats = surprise_of(ids[None], logits[None], None if before is None else before[None])[0]
        self._outputs[start : start + len(ids)] = normed
        self._surprise[start : start + len(ids)] = nats
        self.position += len(ids)
        if start + len(ids) == self._segment:
            self._memory = self.model.writer.write(self._memory, self._outputs[None], self._surprise[None])
            self._bind_memory(self._memory)
            for cache in (*self._cache, self._queries):
                cache[..., : self._segment, :] = cache[..., self._older : self._older + self._segment, :]
            self._older = self._segment

    def _make_cache(self, step: int, places: int) -> Floats:
        """Allocate the keys and values of a pass (L, 2, G, W, K), and bind them once."""
        a = self.model.architecture
        cache = np.zeros((a.n_layers, 2, a.n_kv_heads, places, a.head_dim), self.model.floats)
        for bindings in self._bindings:
            for layer in range(a.n_layers):
                for kind, name in enumerate(("key", "value")):
                    bind(bindings[step], f"{name}_{layer}", cache[layer, kind][None])
        return cache

    def _make_queries(self, places: int) -> Floats:
        """Allocate the memory queries of all passes (S, W, D), of which a model without a memory has none."""
        a = self.model.architecture
        queries = np.zeros((a.steps, places if a.titan else 0, a.d_model), self.model.floats)
        if a.titan is not None:
            for bindings in self._bindings:
                for step, binding in enumerate(bindings):
                    bind(binding, "past_queries", queries[step])
        return queries

    def _bind_memory(self, memory: MemoryState) -> None:
        """Bind the slots, of which the graph has no rows of texts."""
        assert self.model.writer is not None
        self._slots = {name: value[0] for name, value in self.model.writer.slots(memory).items()}
        for binding in (binding for bindings in self._bindings for binding in bindings):
            for name, value in self._slots.items():
                bind(binding, name, value)


@contextmanager
def _without_flash_attention() -> Iterator[None]:
    """Have sessions made here attend by plain products: for one token at a time they take two thirds of the time.

    The runtime has no other switch than this variable, which it reads as it makes a kernel.
    """
    before = os.environ.get(_NO_FLASH)
    os.environ[_NO_FLASH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_FLASH]
        else:
            os.environ[_NO_FLASH] = before


AnyStream = Stream | DecoderStream
