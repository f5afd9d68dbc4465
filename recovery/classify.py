"""What kind of failure an exception is, which decides how it is recovered from.

A rule names an exception type, and may ask for an errno or a pattern in the message; the rule of the nearest base
class wins. Looked through are Ray's wrappers (of a task's exception, of a constructor's), exception groups (the gravest
member counts), explicit causes, and the traceback that Ray sends as text where an exception could not be unpickled.
Phases add rules of their own, which come before these. The table follows what Ray 2.60 was seen to raise.
"""

import asyncio
import builtins
import errno
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent import futures
from dataclasses import dataclass

import httpx
import numpy as np
import pydantic
import ray.exceptions as rayx
import torch

from phases.errors import ArtifactError, BusyError, ConfigError, CorpusError, NumericalError
from recovery.circuit_breaker import CircuitOpenError
from recovery.commits import FencedError
from recovery.taxonomy import ErrorClass

_DEPTH = 16  # causes of causes that are looked through; more are a cycle
_LAST_LINE = re.compile(
    r"^(?:ray\.exceptions\.RayTaskError: )?(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$", re.MULTILINE
)
_ERRNO = re.compile(r"^\[Errno (\d+)\]")


_GRAVITY = {error_class: rank for rank, error_class in enumerate(ErrorClass)}


@dataclass(frozen=True)
class Rule:
    """An exception type and its class; with `errnos` or a `pattern` to be found in the message, only then."""

    exception: type[BaseException]
    error_class: ErrorClass
    errnos: frozenset[int] = frozenset()
    pattern: str = ""

    def holds(self, message: str, number: int | None) -> bool:
        """Say whether the rule's conditions are met."""
        return (not self.errnos or number in self.errnos) and bool(re.search(self.pattern, message, re.IGNORECASE))

    @property
    def conditional(self) -> bool:
        """Whether the type alone does not decide."""
        return bool(self.errnos or self.pattern)


@dataclass(frozen=True)
class Diagnosis:
    """The class of a failure, and the exception that made it so: its type and the first line of its message."""

    error_class: ErrorClass
    cause: str


def _rules(error_class: ErrorClass, *exceptions: type[BaseException]) -> list[Rule]:
    return [Rule(exception, error_class) for exception in exceptions]


_EXHAUSTED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_PASSING = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH}
)
_BAD_DISK = frozenset({errno.EIO, errno.EROFS})

RULES = (
    *_rules(
        ErrorClass.CANCELLED,
        asyncio.CancelledError,
        futures.CancelledError,
        KeyboardInterrupt,
        rayx.TaskCancelledError,
    ),
    *_rules(ErrorClass.FENCED, FencedError),
    *_rules(
        ErrorClass.TRANSIENT,
        TimeoutError,
        ConnectionError,
        InterruptedError,
        subprocess.TimeoutExpired,
        httpx.TransportError,
        CircuitOpenError,
        torch.distributed.DistNetworkError,
        torch.distributed.DistStoreError,
        rayx.ActorUnavailableError,
        rayx.GetTimeoutError,
        rayx.ObjectLostError,
        rayx.PendingCallsLimitExceeded,
        rayx.PlasmaObjectNotAvailable,
        rayx.RpcError,
        rayx.RaySystemError,
        rayx.ActorAlreadyExistsError,  # the incarnation before is still dying
    ),
    Rule(OSError, ErrorClass.TRANSIENT, errnos=_PASSING),
    *_rules(
        ErrorClass.CRASH,
        SystemExit,
        futures.BrokenExecutor,
        torch.AcceleratorError,
        torch.distributed.DistBackendError,
        rayx.WorkerCrashedError,
        rayx.RayActorError,
        rayx.NodeDiedError,
        rayx.LocalRayletDiedError,
        rayx.AsyncioActorExit,
        rayx.ActorHandleNotFoundError,
        rayx.ActorUnschedulableError,
        rayx.TaskUnschedulableError,
        rayx.ActorPlacementGroupRemoved,
        rayx.TaskPlacementGroupRemoved,
    ),
    Rule(OSError, ErrorClass.CRASH, errnos=_BAD_DISK),
    Rule(ValueError, ErrorClass.CRASH, pattern="Failed to look up actor"),
    *_rules(
        ErrorClass.RESOURCE,
        MemoryError,
        torch.OutOfMemoryError,
        rayx.OutOfMemoryError,
        rayx.ObjectStoreFullError,
        rayx.OutOfDiskError,
    ),
    Rule(OSError, ErrorClass.RESOURCE, errnos=_EXHAUSTED),
    Rule(RuntimeError, ErrorClass.RESOURCE, pattern="out of memory|can't allocate memory"),
    Rule(torch.AcceleratorError, ErrorClass.RESOURCE, pattern="out of memory"),
    *_rules(
        ErrorClass.NUMERICAL,
        NumericalError,
        FloatingPointError,
        OverflowError,
        np.linalg.LinAlgError,
        torch.linalg.LinAlgError,  # type: ignore[attr-defined]  # exported, but not to type checkers
    ),
    Rule(RuntimeError, ErrorClass.NUMERICAL, pattern="returned nan values|contains either `inf`, `nan`|non-finite"),
    *_rules(
        ErrorClass.VALIDATION,
        ArtifactError,
        BusyError,
        ConfigError,
        CorpusError,
        PermissionError,
        pydantic.ValidationError,
        rayx.AuthenticationError,
        rayx.RuntimeEnvSetupError,
    ),
)


class Classifier:
    """Classifies by `extra` rules first and then by `RULES`."""

    def __init__(self, extra: Sequence[Rule] = ()) -> None:
        self._by_type: dict[type[BaseException], list[Rule]] = defaultdict(list)
        for rule in sorted((*extra, *RULES), key=lambda rule: not rule.conditional):
            self._by_type[rule.exception].append(rule)
        self._by_name = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in self._by_type}

    def classify(self, error: BaseException) -> ErrorClass:
        """Return the class of a failure, `UNKNOWN` where no rule holds."""
        return self.diagnose(error).error_class

    def diagnose(self, error: BaseException) -> Diagnosis:
        """Return the class of a failure and the exception that decided it."""
        return self._diagnose(error, _DEPTH)

    def _diagnose(self, error: BaseException, depth: int) -> Diagnosis:
        if (wrapped := _wrapped(error)) is not None and depth:
            return self._diagnose(wrapped, depth - 1)
        if isinstance(error, BaseExceptionGroup) and depth:
            return _gravest(self._diagnose(member, depth - 1) for member in error.exceptions)
        message = _message(error)
        if _carries_text(error) and (from_text := self._from_traceback(message)):
            return from_text
        cause = _line(type(error), message)
        if found := self._match(type(error), message, getattr(error, "errno", None)):
            return Diagnosis(found, cause)
        if error.__cause__ is not None and depth:
            inner = self._diagnose(error.__cause__, depth - 1)
            if inner.error_class is not ErrorClass.UNKNOWN:
                return inner
        return Diagnosis(ErrorClass.UNKNOWN, cause)

    def _match(self, exception: type[BaseException], message: str, number: int | None) -> ErrorClass | None:
        for base in exception.__mro__:
            for rule in self._by_type.get(base, ()):
                if rule.holds(message, number):
                    return rule.error_class
        return None

    def _from_traceback(self, text: str) -> Diagnosis | None:
        """Classify by the last line of a traceback that names a known exception."""
        for line in reversed(list(_LAST_LINE.finditer(text))):
            exception, message = self._named(line["name"]), line["message"] or ""
            if exception is not None:
                number = _ERRNO.match(message)
                if found := self._match(exception, message, int(number[1]) if number else None):
                    return Diagnosis(found, line[0])
        return None

    def _named(self, name: str) -> type[BaseException] | None:
        built_in = getattr(builtins, name, None)
        if isinstance(built_in, type) and issubclass(built_in, BaseException):
            return built_in
        return self._by_name.get(name)


def _wrapped(error: BaseException) -> BaseException | None:
    """Return what a Ray error stands for: a task's own exception, or the one that an actor's constructor raised."""
    if isinstance(error, rayx.RayTaskError):
        return error.cause if isinstance(error.cause, BaseException) else None
    if isinstance(error, rayx.ActorDiedError) and error.args and isinstance(error.args[0], rayx.RayTaskError):
        return error.args[0]
    return None


def _carries_text(error: BaseException) -> bool:
    """Ray gives a plain RayError where an exception could not be pickled, and these where it could not be unpickled.

    Tune, which is not imported for this, makes text of what its callbacks raise.
    """
    from_tune = f"{type(error).__module__}.{type(error).__name__}" == "ray.tune.error.TuneError"
    unread = isinstance(error, rayx.UnserializableException | rayx.RaySystemError)
    return from_tune or unread or type(error) is rayx.RayError


def _gravest(members: Iterable[Diagnosis]) -> Diagnosis:
    return max(members, key=lambda member: _GRAVITY[member.error_class])


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:
        return f"(its message cannot be read: {type(broken).__name__})"


def _line(exception: type[BaseException], message: str) -> str:
    first = message.strip().partition("\n")[0]
    return f"{exception.__name__}: {first}" if first else exception.__name__
