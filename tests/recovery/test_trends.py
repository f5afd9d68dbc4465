"""What is claimed follows from what was counted, trends are told from noise, and every alarm is raised once."""

import random
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, poisson

from recovery.trends import Alarms, Availability, Series, Tally, upper_tail


def test_999_is_said_from_2996_clean_calls_up() -> None:
    assert Availability(2996, 0).claim >= 0.999
    assert Availability(2995, 0).claim < 0.999
    assert Availability(2996, 0).text.startswith("at least 99.9 %")
    assert Availability(2995, 0).text.startswith("at least 99.8 %")
    assert Availability(2996, 1).claim < 0.999
    assert Availability(100, 0).text == "at least 97.0 % (95 % confidence; 100 of 100 calls answered)"
    assert "nothing can be claimed" in Availability(0, 0).text


@given(st.integers(1, 10_000), st.data())
def test_the_interval_is_wilsons_and_the_claim_is_no_more_than_the_sample_proves(calls: int, data: Any) -> None:
    failed = data.draw(st.integers(0, calls))
    available = Availability(calls, failed)
    exact = binomtest(calls - failed, calls).proportion_ci(method="wilson")
    assert available.interval == pytest.approx((exact.low, exact.high), abs=1e-6)
    assert available.claim <= 1 - failed / calls
    if available.claim > 0:  # were no more than that answered, so few failures would be seen in 5 % of cases
        assert poisson.cdf(failed, calls * (1 - available.claim)) == pytest.approx(0.05, rel=1e-6)
        assert binom.cdf(failed, calls, 1 - available.claim) <= 0.05 + 1e-9


@given(st.lists(st.tuples(st.floats(0, 50), st.sampled_from("ab")), max_size=60))
def test_a_tally_counts_the_window_and_nothing_else(steps: list[tuple[float, str]]) -> None:
    tally, time, events = Tally(100, slots=10), 0.0, []
    for step, name in steps:
        time += step
        tally.add(time, name)
        events.append((int(time / 10), name))
    counts = tally.counts(time)
    for name in "ab":
        assert counts[name] == sum(1 for slot, kind in events if kind == name and slot > int(time / 10) - 10)
    assert len(tally._counts) <= 10


@given(st.integers(0, 60), st.data(), st.floats(0.05, 0.95))
def test_the_upper_tail_is_the_binomials(trials: int, data: Any, chance: float) -> None:
    successes = data.draw(st.integers(0, trials))
    assert upper_tail(trials, successes, chance) == pytest.approx(float(binom.sf(successes - 1, trials, chance)))


def test_a_steady_fall_is_extrapolated_to_its_end_through_noise() -> None:
    noise = random.Random(0)
    series = Series(600)
    for time in range(0, 600, 5):
        series.add(time, 10e9 - 5e6 * time + noise.gauss(0, 2e7))
    assert series.seconds_left() == pytest.approx((10e9 - 5e6 * 600) / 5e6, rel=0.05)


def test_noise_and_sawteeth_are_no_trend() -> None:
    noise = random.Random(1)
    for _ in range(50):
        level, sawtooth = Series(600), Series(600)
        for time in range(0, 600, 5):
            level.add(time, 1e9 + noise.gauss(0, 1e8))
            sawtooth.add(time, 1e9 - 5e6 * (time % 60))
        assert level.seconds_left() > 1800
        assert sawtooth.seconds_left() == inf


def test_what_starts_up_takes_memory_and_then_no_more() -> None:
    """Workers that start take 4 GB in a minute, of 8: at no time is that a trend."""
    series, noise = Series(600), random.Random(2)
    for time in range(0, 600, 5):
        series.add(time, 8e9 - 4e9 * min(time / 60, 1) + noise.gauss(0, 1e7))
        assert series.seconds_left() > 1800, time


def test_a_series_is_bounded_and_keeps_its_span() -> None:
    series = Series(600, limit=128)
    for tick in range(100_000):
        series.add(tick * 0.01, tick)
    assert len(series._points) <= 129
    assert series._points[-1][0] - series._points[0][0] > 500


@given(st.lists(st.floats(0, 1)))
def test_an_alarm_alternates_with_its_end(levels: list[float]) -> None:
    alarms, told = Alarms(), list[float]()
    was_good = True
    for time, level in enumerate(levels):
        alarms.judge("k", time, "text", bad=level > 0.8, good=level < 0.3)
        fresh = alarms.take()
        assert len(fresh) == (was_good and level > 0.8)
        was_good = level < 0.3 or (was_good and level <= 0.8)
        assert ("k" in alarms.active) is not was_good
        told += [alert.time for alert in fresh]
