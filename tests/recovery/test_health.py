"""What is claimed of a run's health follows from what was observed, and every alarm is raised once."""

import random
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, poisson

from recovery.health import Alarms, Availability, Health, HealthSettings, Series, Tally, upper_tail

SETTINGS = HealthSettings(interval_seconds=1, window_seconds=600)
WORK = {"phase": "p", "task": "t", "agent": "a"}


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


def memory(used: float) -> dict[str, dict[str, Any]]:
    return {"n": {"memory": {"used": used, "total": 16e9}, "disks": {"/": {"free": 1e12, "total": 2e12}}}}


def test_a_leak_is_told_once_until_memory_is_back() -> None:
    health = Health(SETTINGS, 0)
    alerts = []
    for time in range(600):
        health.on_nodes(memory(4e9 + 1e7 * time), time)
        alerts += health.judge(time)
    assert [alert.key for alert in alerts] == ["memory n"]
    assert "runs out in" in alerts[0].text
    for time in range(600, 1800):
        health.on_nodes(memory(5e9), time)
        alerts += health.judge(time)
    assert len(alerts) == 1
    assert health.report(1800)["alerts"] == {}
    for time in range(1800, 2400):
        health.on_nodes(memory(5e9 + 1.5e7 * (time - 1800)), time)
        alerts += health.judge(time)
    assert len(alerts) == 2


def recovery(strategy: str) -> dict[str, str]:
    return WORK | {"strategy": strategy, "error_class": "crash"}


def test_failures_that_come_more_often_are_told_and_a_steady_rate_is_not() -> None:
    for rising in (False, True):
        health, alerts = Health(SETTINGS, 0), []
        for time in range(1200):
            if time % (20 if rising and time > 900 else 120) == 0:
                health.on_event("recovery", recovery("retry"), time)
            alerts += health.judge(time)
        assert [alert.key for alert in alerts] == (["errors"] if rising else [])
    rates = health.report(1200)["rates"]
    assert rates["errors"] == rates["reruns"] > 10
    assert rates["errors_per_minute"] == rates["errors"] / 10


def test_a_task_that_slows_down_is_told_and_one_that_was_always_slow_is_not() -> None:
    for before, after, told in ((4.0, 1.0, ["slow p/t"]), (0.5, 0.5, []), (4.0, 3.0, [])):
        health, alerts, step = Health(SETTINGS, 0), [], 0.0
        for time in range(900):
            step += before if time < 600 else after
            health.on_event("progress", WORK | {"step": int(step)}, time)
            alerts += health.judge(time)
        assert [alert.key for alert in alerts] == told
    stuck, alerts = Health(SETTINGS, 0), []
    for time in range(900):
        if time < 600:
            stuck.on_event("progress", WORK | {"step": time}, time)
        alerts += stuck.judge(time)
    assert [alert.key for alert in alerts] == ["slow p/t"]
    stuck.on_event("task_finished", WORK, 900)
    assert stuck.report(900)["alerts"] == {}


def test_availability_counts_work_and_heartbeats_and_leaves_out_agents_that_were_stopped() -> None:
    health = Health(SETTINGS, 0)
    health.on_heartbeat("p/idle", 0, None)  # not expected: it is still starting
    health.on_event("task_started", WORK, 1)
    for time in (1, 2, 3):
        health.on_heartbeat("p/a", time, {"uptime": time})
    health.on_heartbeat("p/a", 4, None)  # stopped since its work was done, which the next event tells
    health.judge(4)
    health.on_event("task_finished", WORK, 4.5)
    health.judge(10)
    assert health.availability(10) == Availability(4, 0)
    health.on_event("task_started", WORK, 11)
    health.on_heartbeat("p/a", 12, None)  # dead
    health.on_event("recovery", recovery("restart"), 12.5)
    assert health.expected() == {"p/a"}
    health.judge(14)
    assert health.availability(14) == Availability(6, 2)
    health.on_event("recovery", recovery("escalate"), 15)
    assert health.expected() == set()


def test_silent_agents_open_breakers_and_dead_letters_are_told_once() -> None:
    health, alerts = Health(SETTINGS, 0), []
    health.on_event("task_started", WORK, 0)
    for time in range(10):
        health.on_heartbeat("p/a", time, None)
        health.on_event("breaker", {"callee": "a", "before": "closed", "after": "open"}, time)
        health.on_queues({"r": {"pending": 3, "retrying": 0, "held": 0, "breaker": "closed", "dead": [{"body": "x"}]}})
        alerts += health.judge(time)
    assert sorted(alert.key for alert in alerts) == ["breaker a", "dead r", "silent p/a"]
    report = health.report(10)
    assert report["queues"]["r"]["dead"] == 1
    assert report["breakers"] == {"a": "open"}
    assert report["agents"]["p/a"]["missed"] == 10
    health.on_heartbeat("p/a", 11, {})
    health.on_event("breaker", {"callee": "a", "before": "open", "after": "closed"}, 11)
    health.judge(11)
    assert set(health.report(11)["alerts"]) == {"dead r"}


def test_agents_that_are_gone_are_forgotten() -> None:
    health = Health(SETTINGS, 0)
    health.on_event("task_started", WORK, 0)
    health.on_heartbeat("p/b", 0, {})
    health.keep_agents(set())
    assert set(health.report(1)["agents"]) == {"p/a"}
