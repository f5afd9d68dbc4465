"""Opening a quantised ONNX file without holding its weights more often than the runtime's own packed form.

ONNX Runtime copies the weights that stand in a model, and again what it folds out of them, and never gives those copies
back although its kernels use none of them once they are packed. It does give back what it maps from a file beside the
model. So weights are written as the kernels take them (rows filled up to whole blocks, a scale for each block) into a
temporary file, which exists until the session has mapped it, and the model that the session gets has them in place of
the nodes that would have made them. Rows of an embedding, read from the file by the caller, are an input in place of
the nodes that would look them up: of each row in a mapped file the kernel maps 64 KB and more. The file itself remains
complete: any ONNX Runtime can run it without this. Scales stay mapped, and are forgotten (`forget_pages`).

`FOLDED` and `LOOKED_UP` of the file's metadata say what those nodes make. The rest is protobuf's wire format, fields of
onnx.proto3.
"""

import ctypes
import json
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from phases.errors import ArtifactError

Bytes = npt.NDArray[Any]
FOLDED, LOOKED_UP, WEIGHTS = "folded", "looked_up", "weights"
FOLDED_NODE = "folded/"  # begins the names of such nodes
_PAGE = 4096  # bytes
_ROWS = 1024  # written at once
_GRAPH, _METADATA = 7, 14  # of ModelProto
_NODE, _INITIALISER, _INPUT = 1, 5, 11  # of GraphProto
_NODE_NAME = 3  # of NodeProto
_DIMS, _TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14  # of TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


class Fold(NamedTuple):
    """A quantised matrix as it is stored, and as the kernel takes it."""

    codes: str  # the stored rows, (N, B) bytes
    scales: str  # (N, 1) fp16
    blocks_name: str  # what the kernel takes, (N, C, size) bytes
    scales_name: str  # (N, C) fp32
    rows: int
    blocks: int  # C
    size: int  # bytes of a block
    fill: int  # byte of codes of 0


class LookUp(NamedTuple):
    """A quantised embedding whose rows are looked up."""

    output: str  # the tokens' rows, (T, K) floats
    codes: str  # the stored rows, (N, B) bytes
    scales: str  # (N, 1) fp16
    bits: int  # of a code
    columns: int  # K
    exact: bool  # whether each 128th code is a sentinel, and the floats are fp64


class Rows(NamedTuple):
    """Where an embedding lies in the file."""

    look_up: LookUp
    vocabulary: int  # rows
    codes: int  # first byte
    width: int  # bytes of a row
    scales: int  # first byte


class Mapped(NamedTuple):
    """A model whose weights and metadata are outside: a session would keep those twice."""

    model: bytes
    rows: Rows | None  # None where the embedding is not quantised
    metadata: dict[str, str]


class _Field(NamedTuple):
    number: int
    start: int  # of the tag
    value: int  # of the content
    end: int


def with_mapped_weights(path: Path, folder: Path) -> Mapped | None:
    """Return the model with its quantised weights in `folder`, or None where it has none that are quantised.

    Raises `ArtifactError` where it is not an ONNX file, or cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            fields = list(_fields(data, 0, len(data)))
            metadata = _metadata(data, fields)
            folds = [Fold(*entry) for entry in json.loads(metadata.get(FOLDED, "[]"))]
            if not folds:
                return None
            graph = next(field for field in fields if field.number == _GRAPH)
            raw = _raw(data, graph)
            rows = _rows(json.loads(metadata[LOOKED_UP]), raw)
            with (folder / WEIGHTS).open("wb") as weights:
                inside = _graph(data, graph, folds, raw, rows, weights)
            others = [data[f.start : f.end] for f in fields if f.number not in (_GRAPH, _METADATA)]
            return Mapped(b"".join([*others, inside]), rows, {key: value.decode() for key, value in metadata.items()})
    except (ValueError, IndexError, KeyError, StopIteration) as error:
        raise ArtifactError(f"{path}: not an ONNX file that `forge quantize` wrote ({error})") from error


def forget_pages(folder: Path) -> None:
    """Give back the memory of what is still mapped of the weights in `folder`, once a session is made.

    The runtime keeps scales mapped although its kernels have them in their packed form, and do not read them again. If
    something did, they would come back from the file. Where there is no /proc, they stay.
    """
    maps, weights = Path("/proc/self/maps"), str((folder / WEIGHTS).resolve())
    if not maps.exists():
        return
    advise = ctypes.CDLL(None).madvise
    for line in maps.read_text().splitlines():
        if line.endswith(weights):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _metadata(data: mmap.mmap, fields: list[_Field]) -> dict[str, bytes]:
    """Return the model's own entries."""
    entries = [_fields(data, field.value, field.end) for field in fields if field.number == _METADATA]
    pairs = [[data[part.value : part.end] for part in entry] for entry in entries]
    return {key.decode(): value for key, value in pairs}


def _raw(data: mmap.mmap, graph: _Field) -> dict[str, _Field]:
    """Return where the bytes of the graph's initialisers are, by name."""
    raw = dict[str, _Field]()
    for field in _fields(data, graph.value, graph.end):
        if field.number == _INITIALISER:
            parts = {part.number: part for part in _fields(data, field.value, field.end)}
            if _RAW in parts:
                raw[data[parts[_NAME].value : parts[_NAME].end].decode()] = parts[_RAW]
    return raw


def _rows(entry: list[Any] | None, raw: dict[str, _Field]) -> Rows | None:
    if entry is None:
        return None
    look_up = LookUp(*entry)
    codes, scales = raw[look_up.codes], raw[look_up.scales]
    count = (scales.end - scales.value) // np.dtype(np.float16).itemsize
    return Rows(look_up, count, codes.value, (codes.end - codes.value) // count, scales.value)


def _graph(
    data: mmap.mmap, graph: _Field, folds: list[Fold], raw: dict[str, _Field], rows: Rows | None, weights: BinaryIO
) -> bytes:
    """Write the weights and return the graph that has them outside."""
    out, first = bytearray(), bytearray()
    largest = max(folds, key=lambda fold: fold.rows * fold.blocks * fold.size).blocks_name.encode()
    dropped = {raw[name].value for fold in folds for name in (fold.codes, fold.scales)}
    for field in _fields(data, graph.value, graph.end):
        if field.number == _INITIALISER:
            if any(part.value in dropped for part in _fields(data, field.value, field.end)):
                continue
        elif field.number == _NODE and _is_folded(data, field):
            continue
        elif field.number == _NODE and largest in data[field.start : field.end]:
            first += data[field.start : field.end]
            continue
        out += data[field.start : field.end]
    if rows is not None:
        kind = TensorProto.DOUBLE if rows.look_up.exact else TensorProto.FLOAT
        out += _input(rows.look_up.output, kind, rows.look_up.columns)
    for fold in folds:
        out += _folded(data, fold, raw, weights)
    # The runtime packs weights in the order of nodes, which need not be that of computing. The peak is least when the
    # one that takes most beside its packed form comes before there are others.
    return _message(_GRAPH, bytes(first + out))


def _folded(data: mmap.mmap, fold: Fold, raw: dict[str, _Field], weights: BinaryIO) -> bytes:
    """Write one matrix and its scales, a few rows at a time, and return their declarations."""
    start, width = raw[fold.codes].value, (raw[fold.codes].end - raw[fold.codes].value) // fold.rows

    def stored() -> Iterator[Bytes]:
        for row in range(0, fold.rows, _ROWS):
            rows = min(_ROWS, fold.rows - row)
            yield np.frombuffer(data[start + row * width : start + (row + rows) * width], np.uint8).reshape(rows, width)

    def whole() -> Iterator[Bytes]:
        for codes in stored():
            yield np.pad(codes, ((0, 0), (0, fold.blocks * fold.size - width)), constant_values=fold.fill)

    scales = np.frombuffer(data[raw[fold.scales].value : raw[fold.scales].end], np.float16).astype(np.float32)
    shape = (fold.rows, fold.blocks)
    out = _external(fold.blocks_name, TensorProto.UINT8, (*shape, fold.size), _write(weights, whole()))
    expanded = np.repeat(scales, fold.blocks)
    out += _external(fold.scales_name, TensorProto.FLOAT, shape, _write(weights, [expanded]))
    return out


def _write(weights: BinaryIO, pieces: Iterable[Bytes]) -> tuple[int, int]:
    """Append at a page's beginning and return where it lies and how long it is."""
    weights.write(bytes(-weights.tell() % _PAGE))
    at = weights.tell()
    for piece in pieces:
        weights.write(piece.data)
    return at, weights.tell() - at


def _external(name: str, kind: int, shape: tuple[int, ...], place: tuple[int, int]) -> bytes:
    """Return the declaration of a weight that lies in the file of weights."""
    out = b"".join(_number(_DIMS, size) for size in shape) + _number(_TYPE, kind) + _message(_NAME, name.encode())
    for key, value in (("location", WEIGHTS), ("offset", str(place[0])), ("length", str(place[1]))):
        out += _message(_EXTERNAL, _message(1, key.encode()) + _message(2, value.encode()))
    return _message(_INITIALISER, out + _number(_LOCATION, TensorProto.EXTERNAL))


def _input(name: str, kind: int, width: int) -> bytes:
    """Return the declaration of an input of any number of rows."""
    dimensions = _message(1, _message(2, b"T")) + _message(1, _number(1, width))
    tensor = _message(1, _number(1, kind) + _message(2, dimensions))
    return _message(_INPUT, _message(1, name.encode()) + _message(2, tensor))


def _is_folded(data: mmap.mmap, node: _Field) -> bool:
    parts = _fields(data, node.value, node.end)
    return any(p.number == _NODE_NAME and data[p.value : p.end].decode().startswith(FOLDED_NODE) for p in parts)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message from `at` to `end`. Raises `ValueError` where it does not end there."""
    while at < end:
        start = at
        tag, at = _read_varint(data, at)
        wire, value = tag & 7, at
        if wire == _VARINT:
            _, at = _read_varint(data, at)
        elif wire == _BYTES:
            length, value = _read_varint(data, at)
            at = value + length
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {start}")
        if at > end:
            raise ValueError(f"a field at byte {start} is longer than what holds it")
        yield _Field(tag >> 3, start, value, at)


def _read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = 0
    for place in range(10):
        byte = data[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError(f"no number ends at byte {at}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content
