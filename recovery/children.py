"""What a supervisor supervises: how children are kept, what is known of a present life, and how a loss is named.

The errors are made so that `recovery/classify.py` sees a crash in a child that is down or was given up for that, what
its start raised in one that cannot be started, something transient in a deadline, and nothing that starting again would
help in a supervisor that was given up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from phases.errors import ForgeError
from recovery.incarnation import Incarnation
from recovery.spares import Spares
from recovery.supervision import Intensity


class RestartStrategy(StrEnum):
    """Which children are restarted when one fails, in the order of their start."""

    ONE_FOR_ONE = "one_for_one"  # that one; children are independent and start side by side
    ONE_FOR_ALL = "one_for_all"  # all
    REST_FOR_ONE = "rest_for_one"  # that one and those that were started after it


def affected(strategy: RestartStrategy, names: Sequence[str], failed: str) -> list[str]:
    """Return who is restarted with `failed`, in the order of `names`."""
    match strategy:
        case RestartStrategy.ONE_FOR_ONE:
            return [failed]
        case RestartStrategy.ONE_FOR_ALL:
            return list(names)
        case RestartStrategy.REST_FOR_ONE:
            return list(names[names.index(failed) :])


class Loss(StrEnum):
    """How a life of a child came to its end."""

    DIED = "died"
    HUNG = "hung"
    STUCK = "stuck"
    STOPPED = "stopped"  # on purpose: removed, or restarted together with another
    UNSTARTED = "did not start"


class ChildDownError(ForgeError, BrokenExecutor):
    """The life of a child that a call was made to has ended; the call may or may not have been carried out."""

    def __init__(self, message: str, loss: Loss = Loss.DIED) -> None:
        super().__init__(message)
        self.loss = loss


class UnstartableError(ForgeError):
    """A start that failed by what the child is, and not by where or when it was started: it is not tried again."""


class ChildGivenUpError(ForgeError):
    """A child that could not be kept alive and is not started again; the others go on without it."""


class SupervisorGaveUpError(ForgeError):
    """A supervisor whose children failed more often than its intensity allows. All of them are stopped."""


class DeadlineError(ForgeError, TimeoutError):
    """A call that was not answered in time. What it asked for may still be going on."""


Start = Callable[[frozenset[str]], Awaitable[Incarnation]]
"""Starts a life and returns it when it answers. What is given are nodes to keep away from."""


@dataclass(frozen=True)
class ChildSpec:
    """How to keep a child: its name among its siblings, how it is started, and what it is worth.

    A significant child that fails too often takes its supervisor with it. Any other has an intensity of its own, and is
    given up alone. Spares are started ahead, without state, and hold the resources that the child holds.
    """

    name: str
    start: Start
    significant: bool = True
    spares: int = 0
    start_seconds: float | None = None  # until it answers; None: for as long as it waits for resources
    avoidable: Callable[[frozenset[str]], frozenset[str]] = frozenset  # of bad nodes, those to which there are others


@dataclass(frozen=True)
class Down:
    """How and why a life ended."""

    loss: Loss
    detail: str
    cause: BaseException | None = None

    def error(self, child: str) -> ForgeError:
        """Return what calls to the life raise."""
        if isinstance(self.cause, UnstartableError):
            return self.cause
        error = ChildDownError(f"{child} {self.loss}: {self.detail}", self.loss)
        error.__cause__ = self.cause
        return error


@dataclass(eq=False)
class Life:
    """An incarnation with the calls that wait for it."""

    process: Incarnation
    pending: set["asyncio.Future[Any]"] = field(default_factory=set)
    down: Down | None = None
    examined: bool = False
    saved_beats: int = -1
    saved_at: float = 0.0

    def begin(self, answer: "asyncio.Future[Any]") -> None:
        """Count a call; the first one begins the work."""
        if not self.pending and self.process.pulse is not None:
            self.process.pulse.rouse()
        self.pending.add(answer)

    def end(self, down: Down) -> None:
        """End all calls at once."""
        self.down = down
        for answer in self.pending:
            answer.cancel()


@dataclass(eq=False)
class Child:
    """A child with its present life, if any, and what the next one needs."""

    spec: ChildSpec
    budget: Intensity  # of its restarts, where it is not significant
    life: Life | None = None
    ended: ForgeError | None = None  # why there is no further life
    awake: asyncio.Event = field(default_factory=asyncio.Event)  # set while there is a life, or no hope of one
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    last: Down = Down(Loss.UNSTARTED, "not yet")
    snapshot: Any = None
    failures: list[tuple[float, str]] = field(default_factory=list)  # (time, node)
    starting: "asyncio.Task[Incarnation] | None" = None
    spares: Spares = field(init=False)

    @property
    def name(self) -> str:
        """The child's name among its siblings."""
        return self.spec.name
