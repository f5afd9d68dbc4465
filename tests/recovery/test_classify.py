"""Exceptions and their classes: instances of every row of the table, and failures that Ray really raises."""

import asyncio
import errno
import os
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pydantic
import pytest
import ray
import ray.exceptions as rayx
import torch

from phases.errors import ArtifactError, ConfigError, ForgeError, NumericalError
from recovery.circuit_breaker import CircuitOpenError
from recovery.classify import RULES, Classifier, Rule
from recovery.commits import FencedError
from recovery.taxonomy import ErrorClass

CANCELLED, FENCED, TRANSIENT, CRASH = ErrorClass.CANCELLED, ErrorClass.FENCED, ErrorClass.TRANSIENT, ErrorClass.CRASH
RESOURCE, NUMERICAL = ErrorClass.RESOURCE, ErrorClass.NUMERICAL
VALIDATION, UNKNOWN = ErrorClass.VALIDATION, ErrorClass.UNKNOWN


def raised(function: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        function()
    return caught.value


def chained(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


def in_task(cause: BaseException) -> rayx.RayTaskError:
    return rayx.RayTaskError("f", "traceback", cause, proctitle="t", pid=1, ip="127.0.0.1")


def invalid() -> pydantic.BaseModel:
    class Model(pydantic.BaseModel):
        x: int

    return Model.model_validate({"x": "a"})


INSTANCES: list[tuple[BaseException, ErrorClass]] = [
    (KeyError("x"), UNKNOWN),
    (ZeroDivisionError(), UNKNOWN),
    (FileNotFoundError(errno.ENOENT, "no such file"), UNKNOWN),
    (asyncio.CancelledError(), CANCELLED),
    (rayx.TaskCancelledError(), CANCELLED),
    (FencedError("t: epoch 1 has been given up"), FENCED),
    (in_task(FencedError("t: epoch 1 has been given up")), FENCED),
    (chained(ForgeError("t: stopped"), in_task(FencedError("taken over"))), FENCED),
    (rayx.RayError("Exception isn't serializable\nrecovery.commits.FencedError: taken over"), FENCED),
    (TimeoutError(), TRANSIENT),
    (ConnectionResetError(), TRANSIENT),
    (OSError(errno.EHOSTUNREACH, "no route to host"), TRANSIENT),
    (CircuitOpenError("a", 1.0), TRANSIENT),
    (rayx.GetTimeoutError("late"), TRANSIENT),
    (rayx.ActorUnavailableError("may or may not have been executed", None), TRANSIENT),
    (rayx.ObjectLostError("00", None, ""), TRANSIENT),
    (rayx.OwnerDiedError("00", None, ""), TRANSIENT),
    (rayx.PendingCallsLimitExceeded("full"), TRANSIENT),
    (rayx.ActorAlreadyExistsError("taken"), TRANSIENT),
    (rayx.WorkerCrashedError(), CRASH),
    (rayx.ActorDiedError(), CRASH),
    (rayx.NodeDiedError("gone"), CRASH),
    (rayx.LocalRayletDiedError(), CRASH),
    (rayx.ActorUnschedulableError("node is dead"), CRASH),
    (ValueError("Failed to look up actor with name 'x'."), CRASH),
    (OSError(errno.EIO, "input/output error"), CRASH),
    (SystemExit(1), CRASH),
    (MemoryError(), RESOURCE),
    (OSError(errno.ENOSPC, "no space left on device"), RESOURCE),
    (OSError(errno.EMFILE, "too many open files"), RESOURCE),
    (torch.OutOfMemoryError("CUDA out of memory"), RESOURCE),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), RESOURCE),
    (rayx.OutOfMemoryError("Task was killed due to the node running low on memory."), RESOURCE),
    (rayx.ObjectStoreFullError("full"), RESOURCE),
    (rayx.OutOfDiskError("full"), RESOURCE),
    (NumericalError("loss is nan at step 3"), NUMERICAL),
    (FloatingPointError("invalid value"), NUMERICAL),
    (raised(lambda: np.linalg.inv(np.zeros((2, 2)))), NUMERICAL),
    (raised(lambda: torch.linalg.cholesky(-torch.eye(2))), NUMERICAL),
    (raised(lambda: torch.multinomial(torch.tensor([float("nan")]), 1)), NUMERICAL),
    (ConfigError("a = 1: wrong; fix it"), VALIDATION),
    (ArtifactError("x: altered"), VALIDATION),
    (PermissionError(errno.EACCES, "denied"), VALIDATION),
    (raised(invalid), VALIDATION),
    (ForgeError("no cause given"), UNKNOWN),
    (chained(ForgeError("warm_up: wrapped"), in_task(NumericalError("nan"))), NUMERICAL),
    (chained(ConfigError("a = 1: wrong; fix it"), TimeoutError()), VALIDATION),
    (chained(ForgeError("wrapped"), KeyError("x")), UNKNOWN),
    (in_task(OSError(errno.ENOSPC, "full")), RESOURCE),
    (in_task(in_task(rayx.ActorDiedError())), CRASH),
    (rayx.ActorDiedError(in_task(ConfigError("a = 1: wrong; fix it"))), VALIDATION),
    (ExceptionGroup("both", [TimeoutError(), MemoryError()]), RESOURCE),
    (BaseExceptionGroup("siblings", [asyncio.CancelledError(), ExceptionGroup("in", [TimeoutError()])]), TRANSIENT),
    (ExceptionGroup("bug", [TimeoutError(), KeyError()]), UNKNOWN),
    (rayx.UnserializableException("Traceback\n  File x\nMy.Own: what\n"), UNKNOWN),
    (rayx.UnserializableException("Traceback\n  File x\nConnectionResetError: by peer\n"), TRANSIENT),
    (rayx.UnserializableException("OSError: [Errno 28] full\n\nThe above ...:\n\nMyError: wrapped\n"), RESOURCE),
    (rayx.RayError("Exception isn't serializable\ntorch.OutOfMemoryError: CUDA out of memory"), RESOURCE),
    (rayx.RaySystemError("lost the GCS"), TRANSIENT),
]  # fmt: skip


@pytest.mark.parametrize(("error", "expected"), INSTANCES, ids=lambda value: repr(value)[:60])
def test_class_of(error: BaseException, expected: ErrorClass) -> None:
    assert Classifier().classify(error) is expected


def test_every_rule_finds_its_own_type() -> None:
    by_type = {rule.exception: rule.error_class for rule in RULES if not rule.conditional}
    del by_type[pydantic.ValidationError]  # cannot be made without its constructor; among the instances above
    for exception, expected in by_type.items():
        bare = exception.__new__(exception)  # constructors differ; only the type matters
        assert Classifier().classify(bare) is expected, exception


def test_a_cycle_of_causes_ends() -> None:
    first, second = ForgeError("first"), ForgeError("second")
    first.__cause__, second.__cause__ = second, first
    assert Classifier().classify(first) is UNKNOWN


def test_rules_of_a_phase_come_first_and_the_nearest_base_counts() -> None:
    class GateError(ForgeError):
        pass

    class FlakyGateError(GateError):
        pass

    classifier = Classifier(
        [
            Rule(GateError, VALIDATION),
            Rule(FlakyGateError, TRANSIENT),
            Rule(KeyError, CRASH, pattern="driver"),
            Rule(TimeoutError, RESOURCE),
        ]
    )
    assert classifier.classify(GateError("unsafe")) is VALIDATION
    assert classifier.classify(FlakyGateError("probe")) is TRANSIENT
    assert classifier.classify(KeyError("the driver")) is CRASH
    assert classifier.classify(KeyError("x")) is UNKNOWN
    assert classifier.classify(TimeoutError()) is RESOURCE


def test_the_diagnosis_names_what_decided() -> None:
    error = chained(ForgeError("task 3"), in_task(OSError(errno.ENOSPC, "disk full")))
    assert Classifier().diagnose(error).cause == "OSError: [Errno 28] disk full"


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_printed_is_classified() -> None:
    assert (
        Classifier().diagnose(UnreadableError()).cause == "UnreadableError: (its message cannot be read: RuntimeError)"
    )


def test_what_tune_makes_text_of_is_classified() -> None:
    from ray.tune.error import TuneError

    def wrapped(cause: BaseException) -> TuneError:
        try:
            raise cause
        except BaseException:
            return TuneError(traceback.format_exc())

    assert Classifier().diagnose(wrapped(ConnectionResetError(104, "x"))).error_class is TRANSIENT
    assert Classifier().classify(wrapped(OSError(errno.ENOSPC, "full"))) is RESOURCE
    assert Classifier().classify(wrapped(KeyError("x"))) is UNKNOWN


class KeywordOnlyError(Exception):
    """Cannot be unpickled."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


@ray.remote(num_cpus=0.1)
class Patient:
    def __init__(self, error: BaseException | None = None) -> None:
        if error is not None:
            raise error

    def fail(self, error: BaseException) -> None:
        raise error

    def fail_unreadably(self, cause: BaseException) -> None:
        raise KeywordOnlyError(code=3) from cause

    def invalid(self) -> None:
        invalid()

    def allocate(self) -> None:
        torch.empty(1 << 60)

    def sleep(self) -> None:
        time.sleep(60)

    def exit(self) -> None:
        os._exit(1)


@pytest.mark.usefixtures("ray_cluster")
def test_failures_of_real_actors() -> None:
    classify = Classifier().classify

    def outcome(reference: Any, timeout: float = 30) -> ErrorClass:
        return classify(raised(lambda: ray.get(reference, timeout=timeout)))

    actor: Any = Patient.remote()
    assert outcome(actor.fail.remote(KeyError("x"))) is UNKNOWN
    assert outcome(actor.fail.remote(NumericalError("nan"))) is NUMERICAL
    assert outcome(actor.fail.remote(ExceptionGroup("g", [OSError(errno.ENOSPC, "full")]))) is RESOURCE
    assert outcome(actor.allocate.remote()) is RESOURCE
    assert outcome(actor.invalid.remote()) is VALIDATION
    unreadable = raised(lambda: ray.get(actor.fail_unreadably.remote(OSError(errno.ENOSPC, "full"))))
    assert isinstance(unreadable, rayx.UnserializableException)
    assert classify(unreadable) is RESOURCE
    assert outcome(actor.fail_unreadably.remote(KeyError("x"))) is UNKNOWN
    assert outcome(actor.sleep.remote(), timeout=0.1) is TRANSIENT
    ray.kill(actor)
    assert outcome(actor.fail.remote(KeyError("x"))) is CRASH
    assert outcome(Patient.remote(ConfigError("a = 1: wrong; fix it")).sleep.remote()) is VALIDATION
    assert classify(raised(lambda: ray.get_actor("nobody"))) is CRASH


@ray.remote(num_cpus=0.1, max_retries=0)
def vanish() -> None:
    os._exit(1)


@ray.remote(num_cpus=0.1, max_retries=0)
def ask(actor: Any) -> None:
    ray.get(actor.exit.remote())


@pytest.mark.usefixtures("ray_cluster")
def test_processes_that_die() -> None:
    classify = Classifier().classify
    assert classify(raised(lambda: ray.get(vanish.remote(), timeout=30))) is CRASH
    assert classify(raised(lambda: ray.get(Patient.remote().exit.remote(), timeout=30))) is CRASH
    assert classify(raised(lambda: ray.get(ask.remote(Patient.remote()), timeout=30))) is CRASH
