"""What a run under faults shows: which faults were recovered from, which models are the same, which stops were right.

Everything is read from what the run has left: the trace of its points, its journal, its models, and what drivers
printed. Nothing here takes part in a run.
"""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from datetime import datetime

from benchmarks.chaos_plan import strategy, task_of
from benchmarks.chaos_run import INTERVAL, Outcome
from recovery.faults import Fault, Fired, Hit, Kind, Point

_IN_JOURNAL = ("retry", "restart", "rollback", "fallback", "isolate")
_KILLED = frozenset(
    {Kind.KILL, Kind.STOP, Kind.TORN, Kind.CORRUPT, Kind.REMOVE_NODE, Kind.KILL_RAYLET, Kind.KILL_DRIVER}
)


@dataclass(frozen=True)
class Verdict:
    """How a fault was recovered from, and after how many seconds; None where it was not."""

    fault: Fault
    strategy: str
    seconds: float | None


def judge(outcome: Outcome, clean: Outcome) -> list[Verdict]:
    """Return a verdict on each planned fault; on one that did not fire it is a bad one."""
    fired = {item.fault: item for item in outcome.fired}
    order = _order(clean)
    verdicts = list[Verdict]()
    for fault in outcome.planned:
        seconds = None
        if outcome.ended and fault in fired:
            seconds = _seconds(fired[fault], outcome, order)
        verdicts.append(Verdict(fault, strategy(fault), seconds))
    return verdicts


def _order(clean: Outcome) -> dict[Point, int]:
    """Return the place of each point in an undisturbed run."""
    order = dict[Point, int]()
    for hit in clean.trace:
        order.setdefault(hit.point, len(order))
    return order


def _seconds(fired: Fired, outcome: Outcome, order: dict[Point, int]) -> float | None:
    """Return after how long the work was again where the fault struck, by the strategy that was expected."""
    task, expected = task_of(fired.fault.point), strategy(fired.fault)
    if expected in _IN_JOURNAL and not _journalled(outcome, fired, task, expected):
        return None
    if expected == "isolate":
        return 0.0  # nothing comes back; the phase went on, and the run ended
    for hit in outcome.trace:
        if hit.time > fired.time and _is_back(hit, fired, task, order):
            return hit.time - fired.time
    if fired.fault.point in order and order[fired.fault.point] == max(order.values()):
        return _end(outcome) - fired.time  # nothing comes after it but the end
    return None


def _end(outcome: Outcome) -> float:
    """Return when a run that ended was over, in seconds since the epoch."""
    times = [event.time for event in outcome.events if event.kind == "run_finished"]
    return datetime.fromisoformat(times[-1]).timestamp()


def _journalled(outcome: Outcome, fired: Fired, task: str, expected: str) -> bool:
    """Say whether the journal has the strategy for the task. A death that meets another one may go unseen by name.

    So may one of an agent whose pipeline or driver was lost in the same moment: it is started again with them.
    """
    for event in outcome.events:
        data = event.data
        if event.kind == "recovery" and f"{data['phase']}/{data['task']}" == task and data["strategy"] == expected:
            return True
    higher = {Kind.KILL_PIPELINE, Kind.KILL_DRIVER, Kind.KILL_RAYLET, Kind.REMOVE_NODE}
    others = (item for item in outcome.fired if item.fault.kind in higher and item.fault != fired.fault)
    return fired.fault.kind in higher or any(abs(item.time - fired.time) < 30 for item in others)


def _is_back(hit: Hit, fired: Fired, task: str, order: dict[Point, int]) -> bool:
    point = fired.fault.point
    if fired.fault.kind in _KILLED and hit.pid == fired.pid:
        return False
    if hit.point == point:
        return True
    if point.hook in ("measure", "evaluator.send") or hit.point not in order or point not in order:
        return False
    return order[hit.point] > order[point] and (not task or task_of(hit.point) == task)


def planned_fired(outcome: Outcome) -> bool:
    """Say whether the log of fired faults is the plan."""
    return Counter(item.fault for item in outcome.fired) == Counter(outcome.planned)


def same_models(outcome: Outcome, clean: Outcome, but: Set[str] = frozenset()) -> list[bool]:
    """Say of each model of the undisturbed run whether it has the same hash; those named in `but` are left out."""
    return [outcome.hashes.get(name) == digest for name, digest in clean.hashes.items() if name not in but]


def executed_intervals(outcome: Outcome) -> float:
    """Return how many training steps were made, in checkpoint intervals."""
    made = (hit.point for hit in outcome.trace if hit.point.hook == "progress" and "/train " in hit.point.step)
    return sum(not point.step.endswith("/0") for point in made) / INTERVAL


def judge_stops(outcome: Outcome) -> list[bool]:
    """Say of each cause whether it stopped the run once, at a point that can be read, by its name; and it ended."""
    causes = dict.fromkeys(f"{fault.point.hook} {fault.point.step}" for fault in outcome.planned)
    verdicts = list[bool]()
    for cause in causes:
        named = [stop for stop in outcome.stops if cause in " ".join(stop.message.split())]
        verdicts.append(outcome.ended and len(named) == 1 and named[0].readable)
    return verdicts
