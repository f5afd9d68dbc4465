"""Running an exported file: caches bound once and written in place, ponder steps, and the long-term memory.

The file holds everything: weights, the architecture and, for a TinyTitan, what its memory writes with (in the metadata,
for that part is not in the graph). What a token sees is what it sees in `phases.cognate.titan`: the same window, the
same halting, the same memory, so logits agree to rounding whether tokens come one by one or all at once.

Shapes: T tokens of a piece, A of them still pondering, H that have halted, V vocabulary, W places of the cache.
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

from phases.bitnet.memory_writer import MEMORY, MemoryWriter, surprise_of
from phases.bitnet.onnx_binding import Floats, Ints, Read, StoredRows, bind, checked, rotation
from phases.bitnet.onnx_cache import Cache, Turns
from phases.bitnet.onnx_decoder import DecoderStream
from phases.bitnet.onnx_export import FORMAT
from phases.bitnet.onnx_map import forget_pages, with_mapped_weights
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
    end: int  # places of the cache that all its tokens see
    rows: Floats | None  # (T, D), of the embedding; None where the graph looks them up


class OnnxModel:
    """A session and its metadata. Any number of `Stream`s read with it, one at a time."""

    def __init__(self, path: Path, threads: int = 1, *, fast_prefill: bool = False) -> None:
        """Open a file. `fast_prefill` reads many tokens at once faster, and takes more memory (`onnx_prefill.py`).

        An exact file has no use for it. Raises `ArtifactError` where the file is not one of ours, or an older one.
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
                forget_pages(Path(folder))
            properties = self.sessions[0].get_modelmeta().custom_metadata_map if mapped is None else mapped.metadata
            if properties.get("format") != FORMAT:
                raise ArtifactError(f"{path}: not a file that this version of `forge quantize` wrote; write it again")
            self.architecture = Architecture.model_validate_json(properties["architecture"])
            self.exact = bool(json.loads(properties["exact"]))
            self.floats: type[np.floating[Any]] = np.float64 if self.exact else np.float32
            if fast_prefill and not self.exact and mapped is not None:
                self.sessions.append(ort.InferenceSession(widened(path), options, providers=["CPUExecutionProvider"]))
        except (KeyError, ValueError, OSError, *_FAILURES) as error:
            raise ArtifactError(f"{path}: not an ONNX file that `forge quantize` wrote ({error})") from error
        self.rows = None if mapped is None or mapped.rows is None else StoredRows(path, mapped.rows)
        outputs = [output.name for output in self.sessions[0].get_outputs()]
        self.outputs = [name for name in outputs if not name.startswith("present_")]  # those that are not bound
        self.writer: MemoryWriter | None = None
        if self.architecture.titan is not None:
            tensors = load(base64.b64decode(properties[MEMORY]))
            self.writer = MemoryWriter(self.architecture, tensors, exact=self.exact)

    def stream(self) -> "AnyStream":
        """Return a stream that has read nothing."""
        if self.architecture.titan is None and not self.exact:
            return DecoderStream(self.architecture, self.sessions, self.rows)
        return Stream(self)


class Stream:
    """One text as it is read on: caches, memory, and the prediction of the next token."""

    def __init__(self, model: OnnxModel) -> None:
        self.model, self.position = model, 0
        a, titan = model.architecture, model.architecture.titan
        self._prediction: Floats | None = None
        self.caches = [Cache(a, model.sessions) for _ in range(a.steps)]
        self._bindings = [binding for cache in self.caches for binding in cache.bindings]
        self._segment = titan.segment_len if titan else 0
        self._outputs, self._surprise = list[Floats](), list[npt.NDArray[np.float32]]()  # of the segment under way
        self._before = 0  # places of the segment before the one under way
        self._turns = Turns(a, self._bindings)
        self._set_turns()
        self._queries = self._make_queries()
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
        if len(parts) == 1:
            return parts[0]
        return Read(np.concatenate([p.logits for p in parts]), np.concatenate([p.steps for p in parts]))

    def _piece(self, ids: Ints) -> Read:
        """Read tokens of one segment."""
        a, floats = self.model.architecture, self.model.floats
        end = self._end()
        self._make_room(end + len(ids))
        rows = None if self.model.rows is None else self.model.rows(ids)
        piece = _Piece(ids, np.zeros((len(ids), a.d_model), floats), np.ones(len(ids), floats), end, rows)
        steps = np.zeros_like(ids)
        normed = np.empty((len(ids), a.d_model), floats)
        logits = np.empty((len(ids), a.vocab_size), floats)
        active, halted = np.arange(len(ids)), np.arange(0)
        for step in range(a.steps):
            found = self._run(step, piece, active, halted)
            self._keep(step, piece, active, halted, found)
            if a.titan is None:
                logits, steps = found["logits"], steps + 1
                break
            done = active[found["halted"]]
            steps[done] = step + 1
            if len(done) == len(ids):  # nothing to put together
                logits, normed = found["logits"], found["normed"]
            else:
                logits[done], normed[done] = found["logits"], found["normed"]
            piece.hidden[active], piece.going_on[active] = found["hidden_out"], found["going_on_out"]
            active, halted = active[~found["halted"]], np.concatenate([halted, done])
            if not len(active):
                break
        self._absorb(ids, logits, normed)
        return Read(logits, steps)

    def _run(self, step: int, piece: _Piece, active: Ints, halted: Ints) -> dict[str, Any]:
        """Take one pass with the tokens at the columns `active` and return the outputs by name."""
        a = self.model.architecture
        feeds: dict[str, npt.NDArray[Any]] = {"tokens": piece.ids[active]}
        feeds |= self._masked(piece, active, halted) if self.model.exact else self._appended(piece, active, halted)
        if a.titan is not None:
            feeds |= {
                "hidden": piece.hidden[active],
                "going_on": piece.going_on[active],
                "step": np.array(step, np.int64),
                "last": np.array(step == a.steps - 1),
                "query_index": self._query_index(active, self._query_places(piece.end)),
            }
        which = len(self.model.sessions) - 1 if len(active) >= MANY else 0
        if which == 0 and self.model.rows is not None and piece.rows is not None:
            feeds[self.model.rows.name] = piece.rows[active]
        session, binding = self.model.sessions[which], self.caches[step].bindings[which]
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for name in self.model.outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        found = binding.get_outputs_as_ortvaluevector()  # the caches' first, which are bound once
        first = len(found) - len(self.model.outputs)
        return {name: found[first + place].numpy() for place, name in enumerate(self.model.outputs)}

    def _keep(self, step: int, piece: _Piece, active: Ints, halted: Ints, found: dict[str, Any]) -> None:
        """Put keys, values and queries of a pass where later tokens see them, and later passes those that halted."""
        cache, start = self.caches[step], piece.end + len(halted)
        if self.model.exact:
            own = found["present"].reshape(*cache.values.shape[:-2], len(active), -1)
            cache.values[..., start : start + len(active), :] = own
        if self.model.architecture.titan is None:
            return
        halts, places = np.flatnonzero(found["halted"]), self._query_places(piece.end)
        self._queries[step, places + active] = found["queries"]
        self._queries[step + 1 :, places + active[halts]] = found["queries"][halts]
        for later in self.caches[step + 1 :]:
            later.values[..., start : start + len(halts), :] = cache.values[..., start + halts, :]

    def _appended(self, piece: _Piece, active: Ints, halted: Ints) -> dict[str, npt.NDArray[Any]]:
        """Return where the tokens are, for attention that appends them behind those that have halted.

        Of these it would see all, and of those that are appended it sees none that comes later.
        """
        start = piece.end + len(halted)
        count = start + len(active)
        bias = np.zeros((1, 1, len(active), count), np.float32)
        bias[0, 0, :, piece.end : start][halted > active[:, None]] = -np.inf
        return {
            "last_place": np.array([count - 1], np.int32),
            "count": np.array(count, np.int32),
            "positions": piece.end + active[None],
            "bias": bias,
        }

    def _masked(self, piece: _Piece, active: Ints, halted: Ints) -> dict[str, npt.NDArray[Any]]:
        """Return where the tokens are, and 0 where each may look and -inf elsewhere, (A, W + A)."""
        a, places, start = self.model.architecture, self.caches[0].places, piece.end + len(halted)
        seen = np.zeros((len(active), places + len(active)), np.bool_)
        seen[:, : piece.end] = True
        seen[:, piece.end : start] = halted <= active[:, None]
        seen[:, places:] = active <= active[:, None]
        cos, sin = rotation(self.position + active, a.head_dim, a.rope_theta)
        return {"mask": np.where(seen, 0.0, -np.inf), "cos": cos, "sin": sin}

    def _query_index(self, active: Ints, end: int) -> Ints:
        """Return where the memory queries of each token and the three before it are, (A, 4): in the cache or new."""
        index = end + active[:, None] - np.arange(CONV_WIDTH - 1, -1, -1)
        new = np.full(self._queries.shape[1], -1)
        new[end + active] = np.arange(len(active))
        fresh = new[index]
        return np.where(fresh >= 0, fresh + self._queries.shape[1], index)

    def _end(self) -> int:
        """Return the places of the cache that a next token sees."""
        return self._before + self.position % self._segment if self._segment else self.position

    def _query_places(self, end: int) -> int:
        """Return the places of earlier queries: the first convolution looks back at some that are 0."""
        return end if self._before else end + CONV_WIDTH - 1

    def _make_room(self, places: int) -> None:
        """Enlarge the caches that have fewer places, one by one, so that only one is held twice."""
        if places <= self.caches[0].places:
            return
        for cache in self.caches:
            cache.grow(places)
        self._set_turns()
        queries = self._make_queries()
        queries[:, : self._queries.shape[1]] = self._queries
        self._queries = queries

    def _set_turns(self) -> None:
        """Have the places' rotation be that of the positions of their tokens; an exact file gets that of its tokens."""
        if not self.model.exact:
            self._turns.set(self.caches[0].places, self.position - self._end())

    def _absorb(self, ids: Ints, logits: Floats, normed: Floats) -> None:
        """Take a piece into the state; at the end of a segment, write memory and move the window."""
        end = self._end() + len(ids)
        self.position += len(ids)
        if self.model.writer is None:
            return
        before = None if self._prediction is None else self._prediction[None]
        self._surprise.append(surprise_of(ids[None], logits[None], before)[0])
        self._outputs.append(normed)
        self._prediction = logits[-1].copy()
        if self.position % self._segment:
            return
        outputs, surprise = np.concatenate(self._outputs), np.concatenate(self._surprise)
        self._memory = self.model.writer.write(self._memory, outputs[None], surprise[None])
        self._bind_memory(self._memory)
        self._outputs, self._surprise = [], []
        for cache in self.caches:
            cache.values[..., : self._segment, :] = cache.values[..., end - self._segment : end, :]
        places = self._query_places(end)
        self._queries[:, : self._segment] = self._queries[:, places - self._segment : places]
        self._before = self._segment
        self._set_turns()

    def _make_queries(self) -> Floats:
        """Allocate the memory queries of all passes (S, W + 3, D), of which a model without a memory has none."""
        a, places = self.model.architecture, self._query_places(self.caches[0].places)
        queries = np.zeros((a.steps, places if a.titan else 0, a.d_model), self.model.floats)
        if a.titan is not None:
            for cache, of_pass in zip(self.caches, queries, strict=True):
                for binding in cache.bindings:
                    bind(binding, "past_queries", of_pass)
        return queries

    def _bind_memory(self, memory: MemoryState) -> None:
        """Bind the slots, of which the graph has no rows of texts."""
        assert self.model.writer is not None
        self._slots = {name: value[0] for name, value in self.model.writer.slots(memory).items()}
        for binding in self._bindings:
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
