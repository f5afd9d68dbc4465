"""Messages as bytes: msgpack for structure, safetensors for tensors, zstd above 64 KiB, and never pickle.

A message is a tree of plain values, dates, NumPy arrays, torch tensors, and instances of the types that its codec was
made with (enums, pydantic models, dataclasses), which are stored under their names. Anything else is refused with its
path in the message. Reading refuses what is too large, too deep, of a newer version or not a message, and runs no code
but the constructors of registered types. Extension types hold leaves only, so that depth is known before anything is
built.
"""

import dataclasses
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import Any

import msgpack
import numpy as np
import torch
import zstandard
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from phases.errors import ConfigError, ForgeError
from phases.settings import Settings

_MAGIC = b"\xc1AF"  # no msgpack, pickle or zip file begins with 0xc1
_VERSION = 1
_PLAIN, _ZSTD = b"\x00", b"\x01"
_HEADER = len(_MAGIC) + 2
_COMPRESS_FROM = 64 << 10
_PICKLES = (b"\x80", b"PK\x03\x04")  # protocol 2 and later; torch.save
_KEYS = (str, int, bytes)
_LEAVES = frozenset({type(None), bool, float, str, bytes})

_INT, _ARRAY, _SCALAR, _TENSOR, _DATETIME, _DATE, _TIME, _TIMEDELTA, _TAG = range(1, 10)
_TUPLE, _SET, _FROZENSET, _INSTANCE = "tuple", "set", "frozenset", "instance"


class MessageError(ForgeError):
    """Something that is not, or cannot be made, a message."""


class Limits(Settings):
    """What a message may be at most."""

    max_bytes: int = Field(default=64 << 20, ge=1, description="size of a message, uncompressed")
    max_depth: int = Field(default=32, ge=1, le=200, description="containers within containers")


class Codec:
    """Knows the `types` of a kind of message: enums, pydantic models and dataclasses, each by its class name."""

    def __init__(self, types: Iterable[type] = (), limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._types: dict[str, type] = {}
        for cls in types:
            if not (issubclass(cls, Enum | BaseModel) or dataclasses.is_dataclass(cls)):
                fix = "make it an enum, a pydantic model or a dataclass"
                raise ConfigError.of("codec.types", cls.__name__, "cannot be a message", fix)
            if self._types.setdefault(cls.__name__, cls) is not cls:
                raise ConfigError.of("codec.types", cls.__name__, "two types have this name", "rename one")

    def dumps(self, value: Any) -> bytes:
        """Return a message. Raises `MessageError` naming the part that cannot be in one."""
        tree = self._encode(value, "message", 0)
        try:
            return frame(msgpack.packb(tree, use_bin_type=True), self.limits)
        except UnicodeEncodeError as error:
            raise MessageError(f"message: a text is not valid Unicode ({error.reason})") from error

    def loads(self, data: bytes) -> Any:
        """Return what a message holds. Raises `MessageError` where it is none, or one that is refused."""
        packed = unframe(data, self.limits)
        try:
            tree = msgpack.unpackb(packed, raw=False, strict_map_key=False, use_list=True, timestamp=0)
        except (ValueError, msgpack.exceptions.UnpackException, TypeError) as error:
            raise MessageError(f"not a message: {type(error).__name__}: {error}") from error
        return self._decode(tree, 0)

    def _encode(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if kind in _LEAVES:
            return value
        if kind is int:
            return value if -(1 << 63) <= value < 1 << 64 else msgpack.ExtType(_INT, hex(value).encode())
        if kind in _ENCODERS:
            return _ENCODERS[kind](value, path)
        if isinstance(value, np.generic):
            return _encode_scalar(value, path)
        if depth >= self.limits.max_depth:
            raise MessageError(f"{path}: more than {self.limits.max_depth} containers within one another")
        if kind is dict:
            return {self._key(key, path): self._encode(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
        if kind is list:
            return [self._encode(item, f"{path}[{number}]", depth + 1) for number, item in enumerate(value)]
        if kind in (tuple, set, frozenset):
            items = value if kind is tuple else sorted(value, key=repr)  # sets in an order, for equal bytes
            return [_tag(kind.__name__), *(self._encode(item, f"{path}[...]", depth + 1) for item in items)]
        if self._types.get(kind.__name__) is kind:
            content = self._encode(_content(value), f"{path}<{kind.__name__}>", depth + 1)
            return [_tag(_INSTANCE), kind.__name__, content]
        raise MessageError(f"{path}: {kind.__module__}.{kind.__qualname__} cannot be in a message; register its type")

    def _key(self, key: Any, path: str) -> Any:
        if type(key) not in _KEYS:
            raise MessageError(f"{path}: the key {key!r} is not text, a whole number or bytes")
        return key

    def _decode(self, node: Any, depth: int) -> Any:
        kind = type(node)
        if kind in _LEAVES or kind is int:
            return node
        if kind is msgpack.ExtType:
            return _decode_leaf(node)
        if depth >= self.limits.max_depth:
            raise MessageError(f"refused: more than {self.limits.max_depth} containers within one another")
        if kind is dict:
            for key in node:
                self._key(key, "refused")
            return {key: self._decode(item, depth + 1) for key, item in node.items()}
        if kind is not list:  # extension type -1 becomes a time stamp of msgpack's own
            raise MessageError(f"refused: holds a {kind.__name__}, which no message does")
        if not (node and type(node[0]) is msgpack.ExtType and node[0].code == _TAG):
            return [self._decode(item, depth + 1) for item in node]
        tag = node[0].data.decode(errors="replace")
        items = [self._decode(item, depth + 1) for item in node[1:]]
        return self._instance(*items) if tag == _INSTANCE and len(items) == 2 else _collection(tag, items)

    def _instance(self, name: Any, content: Any) -> Any:
        cls = self._types.get(name) if isinstance(name, str) else None
        if cls is None:
            raise MessageError(f"refused: holds a {name!r}, which this reader does not know")
        try:
            if issubclass(cls, BaseModel):
                return cls.model_validate(content)
            return cls(content) if issubclass(cls, Enum) else cls(**content)
        except (ValidationError, ValueError, TypeError) as error:
            raise MessageError(f"refused: not a {name}: {error}") from error


def frame(packed: bytes, limits: Limits) -> bytes:
    """Put the header before `packed` and compress it where it is long. Raises `MessageError` above the limit."""
    if len(packed) > limits.max_bytes:
        raise MessageError(f"message: {len(packed)} bytes, {limits.max_bytes} at most; put large tensors into storage")
    start = _MAGIC + bytes([_VERSION])
    if len(packed) <= _COMPRESS_FROM:
        return start + _PLAIN + packed
    return start + _ZSTD + zstandard.ZstdCompressor(level=1).compress(packed)


def unframe(data: bytes, limits: Limits) -> bytes:
    """Return what `frame` was given. Raises `MessageError` for anything else, naming pickles as such."""
    if data[: len(_MAGIC)] != _MAGIC or len(data) < _HEADER:
        if data.startswith(_PICKLES):
            raise MessageError("refused: this is a pickle, and reading one runs the code in it; send a message")
        raise MessageError("refused: not a message of Agent Forge")
    if data[len(_MAGIC)] > _VERSION:
        raise MessageError("refused: written by a newer version of Agent Forge; update this one")
    how, body = data[_HEADER - 1 : _HEADER], data[_HEADER:]
    if how not in (_PLAIN, _ZSTD):
        raise MessageError("refused: damaged header")
    try:
        size = len(body) if how == _PLAIN else zstandard.frame_content_size(body)
        if not 0 <= size <= limits.max_bytes:
            raise MessageError(f"refused: {size} bytes, {limits.max_bytes} at most")
        return body if how == _PLAIN else zstandard.ZstdDecompressor().decompress(body)
    except zstandard.ZstdError as error:
        raise MessageError(f"refused: damaged ({error})") from error


def _content(value: Any) -> Any:
    """Return what an instance is made from again."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {})
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}


def _tag(name: str) -> msgpack.ExtType:
    return msgpack.ExtType(_TAG, name.encode())


def _collection(tag: str, items: list[Any]) -> Any:
    try:
        return {_TUPLE: tuple, _SET: set, _FROZENSET: frozenset}[tag](items)
    except (KeyError, TypeError) as error:
        raise MessageError(f"refused: not a {tag}: {error}") from error


def _encode_array(array: "np.ndarray[Any, Any]", path: str) -> msgpack.ExtType:
    if array.dtype.hasobject or array.dtype.names is not None:
        raise MessageError(f"{path}: an array of {array.dtype} cannot be in a message; use numbers or text")
    return msgpack.ExtType(_ARRAY, msgpack.packb([array.dtype.str, list(array.shape), array.tobytes()]))


def _encode_scalar(scalar: "np.generic[Any]", path: str) -> msgpack.ExtType:
    array = _encode_array(np.asarray(scalar), path)
    return msgpack.ExtType(_SCALAR, array.data)


def _encode_tensor(tensor: torch.Tensor, path: str) -> msgpack.ExtType:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise MessageError(f"{path}: a sparse or quantised tensor cannot be in a message; make it dense")
    return msgpack.ExtType(_TENSOR, save_tensors({"": tensor.detach().cpu().contiguous()}))


def _encode_timedelta(value: timedelta, path: str) -> msgpack.ExtType:
    return msgpack.ExtType(_TIMEDELTA, msgpack.packb([value.days, value.seconds, value.microseconds]))


def _iso(code: int) -> Callable[[Any, str], msgpack.ExtType]:
    return lambda value, path: msgpack.ExtType(code, value.isoformat().encode())


_ENCODERS: dict[type, Callable[[Any, str], msgpack.ExtType]] = {
    np.ndarray: _encode_array,
    torch.Tensor: _encode_tensor,
    datetime: _iso(_DATETIME),
    date: _iso(_DATE),
    time: _iso(_TIME),
    timedelta: _encode_timedelta,
}


def _decode_array(data: bytes) -> "np.ndarray[Any, Any]":
    dtype_name, shape, content = msgpack.unpackb(data)
    dtype = np.dtype(str(dtype_name))
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return np.frombuffer(content, dtype).reshape(shape).copy()  # a copy, since the bytes are read-only


_DECODERS: dict[int, Callable[[bytes], Any]] = {
    _INT: lambda data: int(data, 16),
    _ARRAY: _decode_array,
    _SCALAR: lambda data: _decode_array(data)[()],
    _TENSOR: lambda data: load_tensors(data)[""],
    _DATETIME: lambda data: datetime.fromisoformat(data.decode()),
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIME: lambda data: time.fromisoformat(data.decode()),
    _TIMEDELTA: lambda data: timedelta(*msgpack.unpackb(data)),
}


def _decode_leaf(node: msgpack.ExtType) -> Any:
    if node.code not in _DECODERS:
        raise MessageError(f"refused: unknown extension {node.code}")
    try:
        return _DECODERS[node.code](node.data)
    except Exception as error:  # the decoders of NumPy, safetensors and datetime raise all kinds for damaged bytes
        raise MessageError(f"refused: damaged value ({type(error).__name__}: {error})") from error
