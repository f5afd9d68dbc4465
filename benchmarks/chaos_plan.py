"""Which faults suit which points, and what is expected to come of each.

The points are those that an undisturbed run was seen to come by. Three lists of wishes are drawn from: faults after
which every byte must be the same, faults that change bytes by design (a rollback lowers the learning rate, a fallback
sums in another order, an isolated variant is missing), and faults after which the run must stop and ask.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice

from recovery.faults import Fault, Hit, Kind, Point, draw

Wish = tuple[Kind, Callable[[Point], bool]]


def at(*hooks: str, step: str = "") -> Callable[[Point], bool]:
    """Return what says whether a point has one of the hooks and a step in which the pattern is found."""
    return lambda point: point.hook in hooks and re.search(step, point.step) is not None


_TRAINING = at("progress", step=r"train \w+/[1-9]")
_AGENT = at("progress", "task.worked", "task.committed", "evaluate", step=r"^\w+/(train|evaluate|choose)|^\w+$")
_ON_A_NODE = at("progress", "evaluate", "measure", step=r"train \w+/[1-9]|^\w+$")
_COORDINATOR = at("attempt", "attempted", "phase.done", "phase.sealed", step=r"^(?!evomerge$)")

SAME_BYTES: tuple[Wish, ...] = (
    (Kind.KILL, _AGENT),
    (Kind.TRANSIENT, _TRAINING),
    (Kind.KILL_PIPELINE, _TRAINING),
    (Kind.CORRUPT, at("checkpoint", step=r"/(8|12|16)$")),
    (Kind.STOP, _TRAINING),
    (Kind.KILL_DRIVER, _AGENT),
    (Kind.KILL_RAYLET, _ON_A_NODE),
    (Kind.SLOW, _TRAINING),
    (Kind.KILL, at("measure")),
    (Kind.TORN, at("write", step=r"checkpoints/|models/")),
    (Kind.LOST_OBJECT, at("progress", "measure", step=r"train \w+/[1-9]|^\w+$")),
    (Kind.KILL, _COORDINATOR),
    (Kind.STOP, _COORDINATOR),
    (Kind.REMOVE_NODE, _ON_A_NODE),
    (Kind.KILL, at("evaluator.send")),
    (Kind.TRANSIENT, at("attempt", "attempted")),
    (Kind.STOP, at("measure")),
    (Kind.STOP, at("evaluator.send")),
)
QUICK = tuple(SAME_BYTES[number] for number in (0, 1, 2, 3, 5, 6))

CHANGED_BYTES: tuple[Wish, ...] = (
    (Kind.NUMERICAL, at("progress", step=r"train reasoning/([5-9]|1\d)$")),
    (Kind.RESOURCE, at("progress", step=r"train memory_integration/([5-9]|1\d)$")),
    (Kind.UNPICKLABLE, at("progress", step=r"train adaptive_computation/([5-9]|1\d)$")),
)

STOPPING: tuple[Wish, ...] = (
    (Kind.VALIDATION, at("task.worked", step="corpus")),
    (Kind.DISK_FULL, at("write", step=r"checkpoints/warm_up/")),
    (Kind.UNKNOWN, at("task.worked", step="choose")),
    (Kind.UNPICKLABLE, at("progress", step="measure winner")),
    (Kind.NUMERICAL, at("progress", step="evolve/[1-9]")),
)
_POISON: Wish = (Kind.TRANSIENT, at("progress", step=r"train warm_up/([5-9]|1\d)$"))


def points_of(trace: Sequence[Hit]) -> list[Point]:
    """Return the points of a trace in an order that does not depend on time."""
    return sorted({hit.point for hit in trace}, key=lambda point: (point.hook, point.step))


def storm(seed: int, points: Sequence[Point], count: int, wishes: Sequence[Wish] = SAME_BYTES) -> list[Fault]:
    """Return `count` faults that leave no trace, every wish as often as the others."""
    return draw(seed, points, list(islice(cycle(wishes), count)))


def stopping(seed: int, points: Sequence[Point], poison_hits: int, wishes: Sequence[Wish] = STOPPING) -> list[Fault]:
    """Return one fault per wish, and one that comes `poison_hits` times in a row."""
    *faults, poison = draw(seed, points, [*wishes, _POISON])
    return [*faults, *(replace(poison, hit=hit) for hit in range(1, poison_hits + 1))]


_BY_KIND = {
    Kind.TRANSIENT: "retry",
    Kind.LOST_OBJECT: "retry",
    Kind.KILL_PIPELINE: "pipeline restart",
    Kind.KILL_DRIVER: "resume",
    Kind.SLOW: "wait",
    Kind.NUMERICAL: "rollback",
    Kind.RESOURCE: "fallback",
    Kind.UNPICKLABLE: "isolate",
}


def strategy(fault: Fault) -> str:
    """Return what is expected to recover from a fault that does not stop the run."""
    if fault.point.hook == "measure":
        return "evaluator replaced"
    if fault.kind in (Kind.KILL, Kind.STOP) and _COORDINATOR(fault.point):
        return "pipeline restart"
    return _BY_KIND.get(fault.kind, "restart")


def task_of(point: Point) -> str:
    """Return the task (`phase/task`) that a point belongs to; empty for what belongs to none."""
    match point.hook, point.step.split("/"):
        case (("progress" | "task.worked" | "task.committed" | "attempt" | "attempted"), [phase, task, *_]):
            return f"{phase}/{task}"
        case "evaluate", [role]:
            return f"cognate/evaluate {role}"
        case "checkpoint", [("instruct" | "bake") as task, _]:
            return f"baking/{task}"
        case "checkpoint", [role, _]:
            return f"cognate/train {role}"
        case "write", ["02_evomerge", *_]:
            return "evomerge/evolve"
        case "write", ["06_baking", *path]:
            return f"baking/{_baking_task(path)}"
        case "write", [folder, "checkpoints" | "models", role, *_]:
            return f"{folder.partition('_')[2]}/train {role}"
        case (("measure" | "evaluator.send"), _):
            return "evomerge/evolve"
    return ""


def _baking_task(path: Sequence[str]) -> str:
    """Return the task of phase 6 that writes a file."""
    match path:
        case ["checkpoints", role, *_]:
            return role
        case ["evidence", name]:
            work = name.removesuffix(".json").partition("-")[2]
            return "measure memory" if work == "measure" else work
        case ["steerable", *_]:
            return "instruct"
        case ["model" | "baked_model.pt", *_]:
            return "bake"
        case ["optimised", *_]:
            return "package"
        case _:
            return "finish"
