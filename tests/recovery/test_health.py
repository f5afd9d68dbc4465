"""What a run's health report and its alerts say follows from the events, answers and measurements that came in."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from recovery.health import Health, HealthSettings
from recovery.trends import Availability

SETTINGS = HealthSettings(interval_seconds=1, window_seconds=600)
WORK = {"phase": "p", "task": "t", "agent": "a"}


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


def test_alarms_about_what_is_gone_are_over() -> None:
    health = Health(SETTINGS, 0)
    health.on_event("task_started", WORK, 0)
    for time in range(600):
        health.on_nodes(memory(4e9 + 1e7 * time), time)
        health.on_heartbeat("p/a", time, None)
        health.judge(time)
    assert set(health.report(600)["alerts"]) == {"memory n", "silent p/a"}
    health.on_nodes({}, 601)
    health.on_event("recovery", recovery("isolate"), 601)
    health.keep_agents(set())
    health.judge(602)
    assert health.report(602)["alerts"] == {}


EVENTS = ["task_started", "task_finished", "task_failed", "recovery", "progress", "agent_given_up", "breaker"]


@given(
    st.lists(st.tuples(st.sampled_from([*EVENTS, "answer", "silence", "look"]), st.integers(0, 3), st.floats(-1, 90)))
)
def test_whatever_happens_there_is_a_report(steps: list[tuple[str, int, float]]) -> None:
    health, now = Health(SETTINGS, 0), 0.0
    for kind, number, seconds in steps:
        now = max(now + seconds, 0)  # clocks are set back at times
        data = WORK | {"agent": f"a{number}", "task": f"t{number}", "step": number, "before": "closed", "after": "open"}
        if kind in EVENTS:
            health.on_event(kind, data | {"strategy": ["retry", "isolate", "escalate", "restart"][number]}, now)
        elif kind == "look":
            health.on_nodes(memory(1e9 * number), now)
            health.keep_agents(health.expected())
            health.judge(now)
        else:
            health.on_heartbeat(f"p/a{number}", now, {"uptime": 1.0} if kind == "answer" else None)
    report = health.report(now)
    assert report == json.loads(json.dumps(report))
    assert 0 <= report["availability"]["failed"] <= report["availability"]["calls"]
    assert 0 <= report["availability"]["low"] <= report["availability"]["high"] <= 1
    assert report["rates"]["reruns"] <= report["rates"]["errors"]
