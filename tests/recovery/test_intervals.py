"""Intervals against plain sets."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from recovery.intervals import Intervals

ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda pair: (pair[0], sum(pair))), max_size=20)


@given(ranges)
def test_they_are_sets(added: list[tuple[int, int]]) -> None:
    intervals, plain = Intervals(), set[int]()
    for start, stop in added:
        fresh = intervals.add(start, stop)
        assert [number for pair in fresh for number in range(*pair)] == sorted(set(range(start, stop)) - plain)
        plain |= set(range(start, stop))
        assert len(intervals) == len(plain)
    for start in range(50):
        assert (start in intervals) == (start in plain)
        assert intervals.covers(start, start + 3) == plain.issuperset(range(start, start + 3))
    pairs = intervals.pairs()
    assert all(stop < following[0] for (_, stop), following in pairwise(pairs))
    assert Intervals(pairs).pairs() == Intervals.of(plain).pairs() == pairs


def test_order_costs_no_memory() -> None:
    intervals = Intervals()
    for start in range(0, 100_000, 100):
        intervals.add(start, start + 100)
    assert intervals.pairs() == [[0, 100_000]]
