"""Which of the six strategies comes next: a policy table, budgets, and a decision that only reads and writes a history.

Each error class has a chain of strategies that ends in `escalate`. The next one is the first of the chain that the task
can make use of and that it has not used up; where a budget is spent, nothing is run again. What was tried is a list of
plain records, so that a history read from the journal decides as the one in memory would have. Nothing is carried out
here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import Field, field_validator
from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base, wait_exponential

from phases.errors import ConfigError
from phases.seeds import child_seed
from phases.settings import Settings
from recovery.taxonomy import RERUNS, ErrorClass, Strategy

DEFAULT_CHAINS: dict[ErrorClass, tuple[Strategy, ...]] = {
    ErrorClass.CANCELLED: (Strategy.ESCALATE,),
    ErrorClass.FENCED: (Strategy.ESCALATE,),
    ErrorClass.TRANSIENT: (Strategy.RETRY, Strategy.RESTART, Strategy.ISOLATE, Strategy.ESCALATE),
    ErrorClass.CRASH: (Strategy.RESTART, Strategy.ISOLATE, Strategy.ESCALATE),
    ErrorClass.RESOURCE: (Strategy.FALLBACK, Strategy.ISOLATE, Strategy.ESCALATE),
    ErrorClass.NUMERICAL: (Strategy.ROLLBACK, Strategy.ISOLATE, Strategy.ESCALATE),
    ErrorClass.VALIDATION: (Strategy.ESCALATE,),
    ErrorClass.UNKNOWN: (Strategy.ISOLATE, Strategy.ESCALATE),
}

ADVICE: dict[ErrorClass, str] = {
    ErrorClass.CANCELLED: "it was stopped on purpose; resume when it may go on",
    ErrorClass.FENCED: "another process has taken this run over and goes on with it; look there",
    ErrorClass.TRANSIENT: "look whether the network, the storage and Ray's head node answer, then resume",
    ErrorClass.CRASH: "read the worker's log for why its process died (a signal, a node that went away), then resume",
    ErrorClass.RESOURCE: "free memory or disk, or lower batch_size or the model's size, then resume",
    ErrorClass.NUMERICAL: "lower learning_rate or look at the data of the failed step, then resume",
    ErrorClass.VALIDATION: "correct what the message names, then resume",
    ErrorClass.UNKNOWN: "this looks like a defect: report it with the traceback; resume tries again",
}

DEFAULT_USES = {Strategy.RETRY: 3, Strategy.FALLBACK: 1, Strategy.RESTART: 3, Strategy.ROLLBACK: 3}
E = TypeVar("E", bound=StrEnum)


class Delays(Settings):
    """How long to wait before a retry: `initial_seconds * multiplier^n`, plus up to `jitter_seconds`."""

    initial_seconds: float = Field(default=0.2, ge=0)
    multiplier: float = Field(default=2.0, ge=1)
    max_seconds: float = Field(default=30.0, ge=0, description="longest wait, jitter left out")
    jitter_seconds: float = Field(default=0.2, ge=0, description="drawn from the run's seed, task and attempt")


class RecoverySettings(Settings):
    """The policy table. A chain given here replaces the default chain of its error class; the others stay."""

    chains: Mapping[ErrorClass, tuple[Strategy, ...]] = Field(default=DEFAULT_CHAINS, description="ends in escalate")
    uses_per_task: Mapping[Strategy, int] = Field(
        default=DEFAULT_USES,
        description="how often a strategy that runs the task again may be used for one task",
    )
    per_task: int = Field(default=8, ge=0, description="times that one task may be run again")
    per_phase: int = Field(default=50, ge=0, description="times that tasks of one phase may be run again")
    per_run: int = Field(default=200, ge=0, description="times that tasks of one run may be run again")
    isolated_per_phase: int = Field(default=2, ge=0, description="optional tasks that a phase may go on without")
    learning_rate_factor: float = Field(default=0.5, gt=0, le=1, description="per rollback")
    delays: Delays = Delays()

    @field_validator("chains", mode="before")
    @classmethod
    def _chains(cls, chains: Any) -> Any:
        """Check names and ends, and keep the default chains of the classes that are not given."""
        given = {}
        for name, chain in _mapping("recovery.chains", chains, "transient: [retry, escalate]").items():
            field = f"recovery.chains.{name}"
            if isinstance(chain, str) or not isinstance(chain, Sequence):
                raise ConfigError.of(field, chain, "not a list", "write e.g. [retry, escalate]")
            strategies = tuple(_member(Strategy, field, strategy) for strategy in chain)
            if strategies[-1:] != (Strategy.ESCALATE,):
                raise ConfigError.of(field, chain, "does not end in escalate", "add escalate at its end")
            if len(set(strategies)) < len(strategies):
                fix = "name each once; recovery.uses_per_task says how often it is used"
                raise ConfigError.of(field, chain, "names a strategy twice", fix)
            given[_member(ErrorClass, field, name)] = strategies
        return DEFAULT_CHAINS | given

    @field_validator("uses_per_task", mode="before")
    @classmethod
    def _uses(cls, uses: Any) -> Any:
        """Check names and counts, and keep the default counts of the strategies that are not given."""
        given = {}
        for name, count in _mapping("recovery.uses_per_task", uses, "retry: 3").items():
            field = f"recovery.uses_per_task.{name}"
            if (strategy := _member(Strategy, field, name)) not in RERUNS:
                raise ConfigError.of(field, count, "does not run a task again", f"choose one of {', '.join(RERUNS)}")
            if not isinstance(count, int) or count < 0:
                raise ConfigError.of(field, count, "not a count", "write 0 or more")
            given[strategy] = count
        return DEFAULT_USES | given


@dataclass(frozen=True)
class Failure:
    """A task that failed, and what could be done about it: what the task declares and what there is to go back to."""

    phase: str
    task: str
    error_class: ErrorClass
    optional: bool = False
    has_fallback: bool = False
    has_checkpoint: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do next, and with what the task is run when it is run again.

    `attempt` counts the uses of this strategy for this task from 1, `delay` is in seconds. `fallback` and
    `learning_rate_factor` (of the configured rate) are of all that was decided for the task so far, since a retry of a
    task that fell back stays with the fallback. `advice` is for the person who is asked.
    """

    strategy: Strategy
    reason: str
    attempt: int = 1
    delay: float = 0.0
    fallback: bool = False
    learning_rate_factor: float = 1.0
    advice: str = ""


class History:
    """What was decided so far in a run. Its records are small dicts; budgets bound their number.

    Made from the records of an earlier process, it leaves out what was before an escalation: a person has been asked
    and has resumed the run, so its budgets begin anew.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        records = list(records)
        escalations = [number for number, record in enumerate(records) if record["strategy"] == Strategy.ESCALATE]
        self.records: list[dict[str, str]] = []
        self._per_task = Counter[tuple[str, str, Strategy]]()
        self._per_phase = Counter[tuple[str, Strategy]]()
        for record in records[escalations[-1] + 1 if escalations else 0 :]:
            self._add(record["phase"], record["task"], ErrorClass(record["error_class"]), Strategy(record["strategy"]))

    def add(self, failure: Failure, decision: Decision) -> dict[str, str]:
        """Note a decision and return its record, to be put into the journal before the decision is carried out."""
        return self._add(failure.phase, failure.task, failure.error_class, decision.strategy)

    def uses(self, phase: str, task: str, strategy: Strategy) -> int:
        """Return how often a strategy was used for a task."""
        return self._per_task[phase, task, strategy]

    def isolated(self, phase: str) -> int:
        """Return how many tasks of a phase it went on without."""
        return self._per_phase[phase, Strategy.ISOLATE]

    def reruns(self, phase: str | None = None, task: str | None = None) -> int:
        """Return how often a task, the tasks of a phase, or all of the run's were run again."""
        if phase is None:
            return sum(count for (_, strategy), count in self._per_phase.items() if strategy in RERUNS)
        if task is None:
            return sum(self._per_phase[phase, strategy] for strategy in RERUNS)
        return sum(self._per_task[phase, task, strategy] for strategy in RERUNS)

    def _add(self, phase: str, task: str, error_class: ErrorClass, strategy: Strategy) -> dict[str, str]:
        record = {"phase": phase, "task": task, "error_class": str(error_class), "strategy": str(strategy)}
        self.records.append(record)
        self._per_task[phase, task, strategy] += 1
        self._per_phase[phase, strategy] += 1
        return record


def decide(settings: RecoverySettings, seed: int, failure: Failure, history: History) -> Decision:
    """Return the next step for a failed task. The same arguments give the same decision, its delay included."""
    phase, task, refused = failure.phase, failure.task, list[str]()
    for strategy in settings.chains[failure.error_class]:
        if problem := _problem(settings, failure, history, strategy):
            refused.append(f"{strategy}: {problem}")
            continue
        attempt = history.uses(phase, task, strategy) + 1
        rollbacks = history.uses(phase, task, Strategy.ROLLBACK) + int(strategy is Strategy.ROLLBACK)
        fell_back = history.uses(phase, task, Strategy.FALLBACK) + int(strategy is Strategy.FALLBACK)
        return Decision(
            strategy=strategy,
            reason=f"{failure.error_class}" + (f" ({'; '.join(refused)})" if refused else ""),
            attempt=attempt,
            delay=delay(settings.delays, strategy, attempt, child_seed(seed, "recovery", phase, task, attempt)),
            fallback=fell_back > 0,
            learning_rate_factor=settings.learning_rate_factor**rollbacks,
            advice=ADVICE[failure.error_class] if strategy is Strategy.ESCALATE else "",
        )
    raise AssertionError("every chain ends in escalate, which is never refused")


def _problem(settings: RecoverySettings, failure: Failure, history: History, strategy: Strategy) -> str | None:
    """Return why a strategy is of no use now, or None."""
    phase, task = failure.phase, failure.task
    if strategy is Strategy.ESCALATE:
        return None
    if strategy is Strategy.ISOLATE:
        if not failure.optional:
            return "the task is not optional"
        if history.isolated(phase) >= settings.isolated_per_phase:
            return f"{settings.isolated_per_phase} tasks of the phase are isolated already"
        return None
    if strategy is Strategy.FALLBACK and not failure.has_fallback:
        return "the task declares none"
    if strategy is Strategy.ROLLBACK and not failure.has_checkpoint:
        return "there is no checkpoint"
    if history.uses(phase, task, strategy) >= settings.uses_per_task[strategy]:
        return f"used {settings.uses_per_task[strategy]} times"
    for what, spent, budget in (
        ("task", history.reruns(phase, task), settings.per_task),
        ("phase", history.reruns(phase), settings.per_phase),
        ("run", history.reruns(), settings.per_run),
    ):
        if spent >= budget:
            return f"the {what}'s budget of {budget} is spent"
    return None


class _SeededJitter(wait_base):
    """Uniform between 0 and `most` seconds; tenacity's own draws from global state."""

    def __init__(self, most: float, seed: int) -> None:
        self.most, self.seed = most, seed

    def __call__(self, retry_state: RetryCallState) -> float:
        return self.most * (self.seed / 2**63)


def delay(delays: Delays, strategy: Strategy, attempt: int, seed: int) -> float:
    """Return the seconds to wait: before each retry, and before each restart but the first."""
    waits = {Strategy.RETRY: attempt, Strategy.RESTART: attempt - 1}.get(strategy, 0)
    if waits < 1:
        return 0.0
    state = RetryCallState(Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = waits
    exponential = wait_exponential(delays.initial_seconds, delays.max_seconds, delays.multiplier)
    return (exponential + _SeededJitter(delays.jitter_seconds, seed))(state)


def _mapping(field: str, value: Any, example: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError.of(field, value, "not a mapping", f"write e.g. {example}")
    return value


def _member(names: type[E], field: str, name: Any) -> E:
    try:
        return names(name)
    except ValueError:
        kind = "strategy" if names is Strategy else "error class"
        hint = get_close_matches(str(name), list(names), n=1)
        fix = f"did you mean {hint[0]}? " if hint else ""
        raise ConfigError.of(field, name, f"no such {kind}", f"{fix}known are {', '.join(names)}") from None
