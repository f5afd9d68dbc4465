"""Which rounds count: those between fast reads of memory, whatever was measured in them."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import quiet
from benchmarks.quiet import QUIET, QuietMemory


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(quiet, "_LOOKS", 1)


def memory(reads: list[float]) -> QuietMemory:
    """Return a memory with a first look of 1 second, and then such reads."""
    script: Iterator[float] = iter([1.0, *reads])
    return QuietMemory(lambda: next(script))


def test_rounds_go_on_until_enough_were_quiet() -> None:
    numbers = list[int]()

    def measure(number: int) -> dict[str, float]:
        numbers.append(number)
        return {"seconds": float(number)}

    watched = memory([1.1, 1.1, 2.0, 1.0, 1.05, 1.15])
    assert watched.rounds(measure, 3, warmup=2) == {"seconds": [0.0, 3.0, 4.0]}
    assert numbers == [-2, -1, 0, 1, 2, 3, 4]
    figure = watched.figure()
    assert figure.value == 1.15
    assert figure.ok
    assert figure.baseline is not None
    assert figure.baseline.value == 3 / 5


def test_where_memory_is_never_quiet_the_quietest_rounds_count_and_that_is_told() -> None:
    watched = memory([9.0] * 6 + [3.0, 2.0] + [9.0] * 13)
    assert watched.rounds(lambda number: {"seconds": float(number)}, 2) == {"seconds": [0.0, 6.0]}
    assert watched.figure().value == 9.0
    assert not watched.figure().ok


@given(
    st.lists(st.floats(1, 3), min_size=31, max_size=31),
    st.lists(st.floats(0, 100), min_size=30, max_size=30),
    st.integers(1, 3),
)
def test_what_is_measured_has_no_say(reads: list[float], values: list[float], repetitions: int) -> None:
    def counted(measured: list[float]) -> list[float]:
        found = memory(reads).rounds(lambda number: {"place": number, "value": measured[number]}, repetitions, 0)
        return found["place"]

    places = counted(values)
    assert places == counted(values[::-1])
    assert len(places) == repetitions
    around = [max(pair) for pair in pairwise(reads[: 10 * repetitions + 1])]
    quiet_rounds = [place for place, read in enumerate(around) if read <= QUIET]
    assert len(quiet_rounds) < repetitions or places == quiet_rounds[:repetitions]


def test_candidates_take_turns() -> None:
    calls = list[str]()
    watched = memory([1.0] * 10)
    seconds = watched.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert {name: len(series) for name, series in seconds.items()} == {"a": 2, "b": 2}
    assert "".join(calls) == "abba" * 2


def test_reading_a_block_takes_time() -> None:
    watched = QuietMemory()
    watched.rounds(lambda number: {"seconds": 1.0}, 1)
    assert 1 <= watched.figure().value < 1000
