"""Decisions end in escalate, keep their budgets, and are the same for the same history and seed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases.errors import ConfigError
from recovery.strategies import (
    ADVICE,
    DEFAULT_CHAINS,
    RERUNS,
    Decision,
    Failure,
    History,
    RecoverySettings,
    Strategy,
    decide,
)
from recovery.taxonomy import ErrorClass

RETRY, FALLBACK, RESTART = Strategy.RETRY, Strategy.FALLBACK, Strategy.RESTART
ROLLBACK, ISOLATE, ESCALATE = Strategy.ROLLBACK, Strategy.ISOLATE, Strategy.ESCALATE


def play(failures: list[Failure], settings: RecoverySettings | None = None, seed: int = 0) -> list[Decision]:
    """Decide on one failure after the other, each decision being noted."""
    history, decisions = History(), []
    for failure in failures:
        decisions.append(decide(settings or RecoverySettings(), seed, failure, history))
        history.add(failure, decisions[-1])
    return decisions


def strategies(decisions: list[Decision]) -> list[Strategy]:
    return [decision.strategy for decision in decisions]


def failure(error_class: ErrorClass, task: str = "t", **abilities: bool) -> Failure:
    return Failure("p", task, error_class, **abilities)


@pytest.mark.parametrize(
    ("error_class", "abilities", "expected"),
    [
        (ErrorClass.TRANSIENT, {}, [RETRY] * 3 + [RESTART] * 3 + [ESCALATE]),
        (ErrorClass.CRASH, {"optional": True}, [RESTART] * 3 + [ISOLATE]),
        (ErrorClass.RESOURCE, {"has_fallback": True}, [FALLBACK, ESCALATE]),
        (ErrorClass.RESOURCE, {}, [ESCALATE]),
        (ErrorClass.NUMERICAL, {"has_checkpoint": True}, [ROLLBACK] * 3 + [ESCALATE]),
        (ErrorClass.NUMERICAL, {}, [ESCALATE]),
        (ErrorClass.VALIDATION, {"optional": True}, [ESCALATE]),
        (ErrorClass.UNKNOWN, {}, [ESCALATE]),
        (ErrorClass.UNKNOWN, {"optional": True}, [ISOLATE]),
        (ErrorClass.CANCELLED, {}, [ESCALATE]),
    ],
)
def test_a_task_that_always_fails_goes_through_its_chain(
    error_class: ErrorClass, abilities: dict[str, bool], expected: list[Strategy]
) -> None:
    assert strategies(play([failure(error_class, **abilities)] * len(expected))) == expected


def test_fallback_and_lower_learning_rate_stay_with_the_task() -> None:
    abilities = {"has_fallback": True, "has_checkpoint": True}
    classes = [ErrorClass.NUMERICAL, ErrorClass.RESOURCE, ErrorClass.TRANSIENT, ErrorClass.NUMERICAL]
    decisions = play([failure(error_class, **abilities) for error_class in classes])
    assert strategies(decisions) == [ROLLBACK, FALLBACK, RETRY, ROLLBACK]
    assert [decision.learning_rate_factor for decision in decisions] == [0.5, 0.5, 0.5, 0.25]
    assert [decision.fallback for decision in decisions] == [False, True, True, True]
    assert [decision.attempt for decision in decisions] == [1, 1, 1, 2]


def test_an_escalation_says_what_was_spent_and_what_to_do() -> None:
    last = play([failure(ErrorClass.CRASH)] * 4)[-1]
    assert last.reason == "crash (restart: used 3 times; isolate: the task is not optional)"
    assert last.advice == ADVICE[ErrorClass.CRASH]
    settings = RecoverySettings(per_phase=1)
    last = play([failure(ErrorClass.CRASH, "a"), failure(ErrorClass.CRASH, "b")], settings)[-1]
    assert "restart: the phase's budget of 1 is spent" in last.reason


def test_a_phase_goes_on_without_few_agents_only() -> None:
    failures = [failure(ErrorClass.UNKNOWN, task, optional=True) for task in "abc"]
    assert strategies(play(failures)) == [ISOLATE, ISOLATE, ESCALATE]


def test_budgets_begin_anew_when_a_person_was_asked_and_resumed() -> None:
    crash, settings = failure(ErrorClass.CRASH), RecoverySettings(per_task=1)
    history = History()
    assert history.add(crash, decide(settings, 0, crash, history))["strategy"] == "restart"
    assert decide(settings, 0, crash, History(history.records)).strategy is ESCALATE
    history.add(crash, decide(settings, 0, crash, history))
    assert decide(settings, 0, crash, History(history.records)).strategy is RESTART


def test_delays_grow_with_a_seeded_jitter() -> None:
    settings = RecoverySettings.model_validate(
        {"uses_per_task": {"retry": 6}, "delays": {"initial_seconds": 1, "max_seconds": 10, "jitter_seconds": 0.5}}
    )
    failures = [failure(ErrorClass.TRANSIENT)] * 8
    delays = [decision.delay for decision in play(failures, settings)]
    for delay, base in zip(delays, [1, 2, 4, 8, 10, 10, 0, 1], strict=True):
        assert base <= delay <= base + 0.5
    assert delays[6] == 0
    assert delays == [decision.delay for decision in play(failures, settings)]
    assert delays != [decision.delay for decision in play(failures, settings, seed=1)]
    assert len({delay % 1 for delay in delays[:6]}) == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"chains": {"transient": ["retri", "escalate"]}},
            "chains.transient = 'retri': no such strategy; did you mean",
        ),
        ({"chains": {"transiant": ["escalate"]}}, "no such error class; did you mean transient?"),
        ({"chains": {"crash": ["restart"]}}, "chains.crash = .*does not end in escalate; add escalate"),
        ({"chains": {"crash": []}}, "does not end in escalate"),
        ({"chains": {"crash": ["retry", "retry", "escalate"]}}, "names a strategy twice"),
        ({"chains": {"crash": "escalate"}}, "not a list"),
        ({"chains": ["escalate"]}, "not a mapping"),
        ({"uses_per_task": {"isolate": 3}}, "does not run a task again"),
        ({"uses_per_task": {"retry": -1}}, "not a count"),
    ],
)
def test_impossible_policies_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecoverySettings.model_validate(values)


def test_a_given_chain_leaves_the_others_and_settings_survive_yaml() -> None:
    settings = RecoverySettings.model_validate({"chains": {"crash": ["escalate"]}, "uses_per_task": {"retry": 1}})
    assert settings.chains == DEFAULT_CHAINS | {ErrorClass.CRASH: (ESCALATE,)}
    assert settings.uses_per_task[RESTART] == 3
    assert RecoverySettings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


failures_ = st.builds(
    Failure,
    phase=st.sampled_from(["p", "q"]),
    task=st.sampled_from(["a", "b", "c"]),
    error_class=st.sampled_from(ErrorClass),
    optional=st.booleans(),
    has_fallback=st.booleans(),
    has_checkpoint=st.booleans(),
)
chains_ = st.permutations([strategy for strategy in Strategy if strategy is not ESCALATE]).flatmap(
    lambda order: st.integers(0, len(order)).map(lambda count: (*order[:count], ESCALATE))
)
settings_ = st.builds(
    RecoverySettings,
    chains=st.dictionaries(st.sampled_from(ErrorClass), chains_),
    uses_per_task=st.dictionaries(st.sampled_from(RERUNS), st.integers(0, 4)),
    per_task=st.integers(0, 5),
    per_phase=st.integers(0, 8),
    per_run=st.integers(0, 12),
    isolated_per_phase=st.integers(0, 2),
)


@given(settings_, failures_)
def test_a_task_that_always_fails_is_given_up_within_its_budget(settings: RecoverySettings, once: Failure) -> None:
    decided = strategies(play([once] * (settings.per_task + 3), settings))
    ends = [index for index, strategy in enumerate(decided) if strategy in (ISOLATE, ESCALATE)]
    assert ends[0] <= settings.per_task
    assert decided[-1] in (ISOLATE, ESCALATE)


@given(settings_, st.lists(failures_, max_size=40), st.integers(0, 100))
def test_budgets_hold_and_a_restored_history_decides_alike(
    settings: RecoverySettings, failures: list[Failure], seed: int
) -> None:
    history, made = History(), list[tuple[Failure, Strategy]]()
    for once in failures:
        restored = History(json.loads(json.dumps(history.records)))
        decision = decide(settings, seed, once, history)
        assert decision == decide(settings, seed, once, restored)
        assert decision.strategy in settings.chains[once.error_class]
        assert decision.strategy is not FALLBACK or once.has_fallback
        assert decision.strategy is not ROLLBACK or once.has_checkpoint
        assert decision.strategy is not ISOLATE or once.optional
        history.add(once, decision)
        made.append((once, decision.strategy))
        if decision.strategy is ESCALATE:
            break  # the run stops
    assert sum(strategy in RERUNS for _, strategy in made) <= settings.per_run
    for phase in ("p", "q"):
        of_phase = [(once.task, strategy) for once, strategy in made if once.phase == phase]
        assert sum(strategy in RERUNS for _, strategy in of_phase) <= settings.per_phase
        assert sum(strategy is ISOLATE for _, strategy in of_phase) <= settings.isolated_per_phase
        for task in ("a", "b", "c"):
            used = [strategy for name, strategy in of_phase if name == task]
            assert sum(strategy in RERUNS for strategy in used) <= settings.per_task
            assert all(used.count(strategy) <= settings.uses_per_task[strategy] for strategy in RERUNS)
