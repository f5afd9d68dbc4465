"""Messages come back as they went, and nothing but a message is read."""

import dataclasses
import io
import pickle
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from enum import Enum, IntEnum, StrEnum
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from pydantic import BaseModel

from phases.contract import Claim, Probe
from phases.errors import ConfigError
from recovery.serialization import Codec, Limits, MessageError, frame


class Colour(Enum):
    RED = (1, 0, 0)


class Level(IntEnum):
    HIGH = 3


class Name(StrEnum):
    A = "a"


class Inner(BaseModel):
    values: tuple[int, ...]
    when: datetime


class Outer(BaseModel):
    inner: Inner
    by_number: dict[int, Inner]


@dataclasses.dataclass(frozen=True)
class Task:
    id: str
    after: tuple[str, ...] = ()


CODEC = Codec([Colour, Level, Name, Inner, Outer, Task, Claim, Probe])

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=-5, minutes=30))))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.sampled_from([Colour.RED, Level.HIGH, Name.A])
)
hashable = st.integers() | st.text() | st.tuples(st.booleans(), st.text())
trees = st.recursive(
    plain | st.sets(hashable) | st.frozensets(hashable) | st.builds(Task, st.text(), st.tuples(st.text())),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(), inner, max_size=4)
    ),
    max_leaves=20,
)


def types_of(value: Any) -> Any:
    """Return a value's structure of types, since 1 == True and (1,) is told from [1]."""
    if isinstance(value, dict):
        return {key: types_of(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value), [types_of(item) for item in value]
    return type(value)


@given(trees)
def test_trees_come_back_with_their_types(value: Any) -> None:
    again = CODEC.loads(CODEC.dumps(value))
    assert again == value
    assert types_of(again) == types_of(value)


@given(trees)
def test_equal_values_are_equal_bytes(value: Any) -> None:
    assert CODEC.dumps(CODEC.loads(CODEC.dumps(value))) == CODEC.dumps(value)


arrays = np_st.arrays(
    np_st.scalar_dtypes().filter(lambda dtype: not dtype.hasobject), np_st.array_shapes(min_dims=0, min_side=0)
)


@given(arrays)
def test_arrays_come_back_bit_by_bit_and_writable(array: "np.ndarray[Any, Any]") -> None:
    again = CODEC.loads(CODEC.dumps({"a": array}))["a"]
    assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert again.flags.writeable


@pytest.mark.parametrize("scalar", [np.float32(1.5), np.int64(-3), np.bool_(True), np.datetime64("2026-01-02", "s")])
def test_numpy_scalars_keep_their_type(scalar: Any) -> None:
    again = CODEC.loads(CODEC.dumps(scalar))
    assert again == scalar
    assert type(again) is type(scalar)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool])
def test_tensors_come_back(dtype: torch.dtype) -> None:
    tensor = (torch.arange(12).reshape(3, 4).float() / 3).to(dtype).T  # not contiguous
    again = CODEC.loads(CODEC.dumps([tensor]))[0]
    assert again.dtype is dtype
    assert torch.equal(again.float(), tensor.float())


def test_registered_models_come_back() -> None:
    inner = Inner(values=(1, 2), when=datetime(2026, 1, 2, tzinfo=UTC))
    outer = Outer(inner=inner, by_number={3: inner})
    claim = Claim(key="a/b", value=1.0, unit="x", better="lower", tolerance=0.0, probe=Probe(name="p"))
    again = CODEC.loads(CODEC.dumps([outer, claim]))
    assert again == [outer, claim]
    assert isinstance(again[0].by_number[3], Inner)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [0, object()]}, r"message.a\[1\]: builtins.object cannot be in a message"),
        (lambda: 0, "function cannot be in a message"),
        (KeyError("x"), "KeyError cannot be in a message"),
        ({(1, 2): 3}, r"the key \(1, 2\) is not text"),
        (np.array([object()]), "an array of object cannot"),
        (np.zeros(1, dtype=[("a", "i4")]), "cannot be in a message"),
        (torch.zeros(2).to_sparse(), "sparse or quantised"),
        ("\ud800", "not valid Unicode"),
        (np.zeros(2_000), "at most; put large tensors into storage"),
    ],
)
def test_what_is_no_message_is_refused_with_its_path(value: Any, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        Codec(limits=Limits(max_bytes=10_000)).dumps(value)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def test_depth_is_limited_both_ways() -> None:
    codec = Codec(limits=Limits(max_depth=5))
    assert codec.loads(codec.dumps(nested(5))) == nested(5)
    with pytest.raises(MessageError, match="more than 5 containers"):
        codec.dumps(nested(6))
    with pytest.raises(MessageError, match="more than 5 containers"):
        codec.loads(Codec().dumps(nested(6)))
    with pytest.raises(MessageError):
        codec.loads(frame(b"\x91" * 100_000 + b"\x00", Limits()))


def test_long_messages_are_compressed_and_bombs_refused() -> None:
    zeros = bytes(1 << 20)
    assert len(CODEC.dumps(zeros)) < 1000
    assert CODEC.loads(CODEC.dumps(zeros)) == zeros
    assert len(CODEC.dumps(zeros[: 64 << 10 >> 1])) > 32 << 10
    with pytest.raises(MessageError, match="1000 at most"):
        Codec(limits=Limits(max_bytes=1000)).loads(CODEC.dumps(zeros))
    without_size = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    with pytest.raises(MessageError, match="refused"):
        CODEC.loads(CODEC.dumps(0)[:4] + b"\x01" + without_size)


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was run",))


def test_pickles_are_refused() -> None:
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer)
    for data in (*(pickle.dumps(Bomb(), protocol) for protocol in range(2, 6)), buffer.getvalue()):
        with pytest.raises(MessageError, match="this is a pickle"):
            CODEC.loads(data)
    with pytest.raises(MessageError, match="not a message"):
        CODEC.loads(pickle.dumps(Bomb(), 0))
    objects = msgpack.packb(["|O", [1], pickle.dumps(Bomb())])
    with pytest.raises(MessageError, match="array of objects"):
        CODEC.loads(frame(msgpack.packb(msgpack.ExtType(2, objects)), Limits()))


def test_other_versions_and_unknown_types_are_named() -> None:
    data = bytearray(CODEC.dumps(1))
    data[3] += 1
    with pytest.raises(MessageError, match="newer version"):
        CODEC.loads(bytes(data))
    with pytest.raises(MessageError, match="holds a 'Task', which this reader does not know"):
        Codec().loads(CODEC.dumps(Task("a")))
    with pytest.raises(MessageError, match="not a Inner"):
        CODEC.loads(CODEC.dumps(Inner.model_construct(values="x", when=3)))


def test_types_are_told_apart_by_name() -> None:
    other = type("Task", (BaseModel,), {})
    with pytest.raises(ConfigError, match="two types have this name"):
        Codec([Task, other])
    with pytest.raises(ConfigError, match="cannot be a message"):
        Codec([Bomb])


def test_what_msgpack_knows_and_messages_do_not_is_refused() -> None:
    stamped = frame(msgpack.packb({"a": [msgpack.Timestamp(1)]}), CODEC.limits)
    with pytest.raises(MessageError, match="holds a Timestamp"):
        CODEC.loads(stamped)


MESSAGE = CODEC.dumps(
    {"a": np.arange(3), "t": torch.ones(2), "d": date(2026, 1, 2), "n": time(1, 2), "s": {1, 2}, "x": Task("a", ("b",))}
)


@settings(max_examples=300)
@given(st.integers(0, len(MESSAGE) - 1), st.integers(0, 255), st.integers(0, len(MESSAGE)))
def test_damage_gives_a_value_or_a_message_error_and_nothing_else(place: int, byte: int, length: int) -> None:
    damaged = bytearray(MESSAGE)
    damaged[place] = byte
    for data in (bytes(damaged), MESSAGE[:length]):
        with suppress(MessageError):
            CODEC.loads(data)
