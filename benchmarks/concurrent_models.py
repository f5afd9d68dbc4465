"""Ten models through one phase's plan over shared agents, with faults: nothing mixed up, and the time that it takes.

A model's tasks hash bytes of its own and what its earlier tasks reported, on four agents that all models share; each
report is tagged with its model. Each round runs once without faults and once with seeded ones: agents killed with
SIGKILL in their work, timeouts, values that are not finite, memory that does not suffice. The bound is the larger of
the longest path through a plan and all work divided by the agents, in the task durations of the round without faults;
both are measured from the first task's start.
"""

import asyncio
import hashlib
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from actors.agent import Task
from benchmarks.concurrent_agent import BLOCK, METRICS, Hasher, result_path, tag
from benchmarks.harness import Baseline, Figure, local_ray, progress
from coordinators.phase import PhaseCoordinator, Role, RunContext
from coordinators.schedule import awaited
from phases import storage
from phases.errors import ForgeError
from phases.seeds import child_seed
from phases.timing import bootstrap

MODELS = tuple(f"model-{number}" for number in range(10))
AGENTS = ("north", "east", "south", "west")
LEVELS = 4  # tasks of a model at each agent
FAULTS = {"kill": "crash", "timeout": "transient", "nan": "numerical", "memory": "resource"}  # and what class each is


@dataclass(frozen=True)
class Fault:
    """What happens to a task's first attempt when a share `at` of its work is done."""

    task: str
    kind: str
    at: float


@dataclass(frozen=True)
class Outcome:
    """What one run made: seconds by task, reports taken of another model, result bytes and recoveries."""

    makespan: float
    seconds: dict[str, float]
    foreign: int
    results: dict[str, bytes]
    recoveries: list[tuple[str, str]]  # task and class of each failure


def run(quick: bool) -> list[Figure]:
    """Measure `mixed`, `different` and `makespan_ratio`."""
    rounds, seconds, faults = (1, 0.3, 4) if quick else (3, 0.75, 10)
    clean, faulty = list[float](), list[float]()
    mixed = different = 0
    for seed in range(rounds):
        plans = {model: plan(model, hash_rounds(seconds), seed) for model in MODELS}
        drawn = draw_faults(plans, faults, seed)
        with TemporaryDirectory() as folder, local_ray(len(AGENTS), 300 << 20):
            undisturbed = carry_out(f"{folder}/clean", plans)
            disturbed = carry_out(f"{folder}/faulty", plans, drawn)
        check_fired(drawn, disturbed)
        least = bound(plans, undisturbed.seconds)
        clean.append(undisturbed.makespan / least)
        faulty.append(disturbed.makespan / least)
        mixed += undisturbed.foreign + disturbed.foreign
        different += sum(disturbed.results[model] != undisturbed.results[model] for model in MODELS)
        progress(f"seed {seed}: bound {least:.1f} s, clean {clean[-1]:.2f}x, with faults {faulty[-1]:.2f}x")
    of = f"of {rounds * len(MODELS)} models, {rounds * faults} faults"
    raw = {"with faults": faulty, "clean": clean}
    low, high = bootstrap(faulty)
    return [
        Figure(key="mixed", value=mixed, unit=f"reports taken of another, {of}", better="lower", goal=0, raw=raw),
        Figure(key="different", value=different, unit=f"results, {of}", better="lower", goal=0, raw=raw),
        Figure(
            key="makespan_ratio",
            value=statistics.median(faulty),
            unit="x the critical-path bound",
            better="lower",
            goal=1.2,
            baseline=Baseline(what="without faults, x the same bound", value=statistics.median(clean)),
            low=low,
            high=high,
            raw=raw,
        ),
    ]


def plan(model: str, rounds: int, seed: int) -> list[Task]:
    """Return a model's tasks: at each level one per agent, each taking two reports of the level before.

    Models differ in size: `rounds` is what a task has on average.
    """
    size = int(rounds * np.random.default_rng(child_seed(seed, model)).uniform(0.5, 1.5))
    tasks = list[Task]()
    for level in range(LEVELS):
        for number, agent in enumerate(AGENTS):
            before = [f"{level - 1}-{AGENTS[(number + step) % len(AGENTS)]}" for step in range(2)] if level else []
            inputs = {f"part{position}": name for position, name in enumerate(before)}
            tasks.append(_task(f"{level}-{agent}", agent, "work", model, size, inputs))
    last = {f"part{number}": task.id for number, task in enumerate(tasks[-len(AGENTS) :])}
    return [*tasks, _task("finish", AGENTS[0], "finish", model, 1, last)]


def _task(name: str, agent: str, method: str, model: str, rounds: int, inputs: dict[str, str]) -> Task:
    arguments = {"model": model, "rounds": rounds, "piece": BLOCK}
    return Task(name, agent, method, arguments, inputs=inputs, fallback=arguments | {"piece": BLOCK // 4}, resumes=True)


def draw_faults(plans: Mapping[str, Sequence[Task]], count: int, seed: int) -> list[Fault]:
    """Return faults of each kind in turn, at different tasks."""
    rng = random.Random(child_seed(seed, "faults"))
    names = sorted(f"{model}/{task.id}" for model, tasks in plans.items() for task in tasks if task.method == "work")
    kinds = [kind for _ in range(count) for kind in FAULTS][:count]
    return [Fault(name, kind, rng.random()) for name, kind in zip(rng.sample(names, count), kinds, strict=True)]


def carry_out(folder: str, plans: Mapping[str, Sequence[Task]], faults: Sequence[Fault] = ()) -> Outcome:
    """Run all models' plans side by side with what is to happen to them."""
    by_task = {fault.task: (fault.kind, fault.at) for fault in faults}
    events = list[tuple[float, str, dict[str, Any]]]()
    Path(folder).mkdir()

    def emit(kind: str, **data: Any) -> None:
        events.append((time.perf_counter(), kind, data))

    async def go() -> None:
        coordinator = PhaseCoordinator(RunContext(folder, emit), "concurrent")
        roles = {agent: Role(Hasher) for agent in AGENTS}
        given = {
            model: [_with_fault(task, by_task.get(f"{model}/{task.id}")) for task in plans[model]] for model in plans
        }
        await asyncio.gather(*(coordinator.run_plan(tasks, roles, model=model) for model, tasks in given.items()))

    asyncio.run(go())
    end = time.perf_counter()
    begin = next(at for at, kind, _ in events if kind == "task_started")
    records = [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]
    results = {model: storage.read_bytes(result_path(folder, model)) for model in plans}
    return Outcome(
        makespan=end - begin,
        seconds={record["task"]: record["seconds"] for record in records},
        foreign=sum(record["foreign"] for record in records)
        + sum(not result.startswith(tag(model)) for model, result in results.items()),
        results=results,
        recoveries=[(data["task"], data["error_class"]) for _, kind, data in events if kind == "recovery"],
    )


def bound(plans: Mapping[str, Sequence[Task]], seconds: Mapping[str, float]) -> float:
    """Return the seconds that no schedule can beat: the longest path, or all work divided by the agents."""
    ends = dict[str, float]()
    for model, tasks in plans.items():
        for task in tasks:  # in an order in which all that a task waits for comes before it
            before = [ends[f"{model}/{name}"] for name in awaited(tasks)[task.id]]
            ends[f"{model}/{task.id}"] = max(before, default=0.0) + seconds[f"{model}/{task.id}"]
    return max(max(ends.values()), sum(seconds.values()) / len(AGENTS))


def check_fired(faults: Sequence[Fault], outcome: Outcome) -> None:
    """Raise `ForgeError` unless each fault was seen and classified as what it is."""
    missing = [fault for fault in faults if (fault.task, FAULTS[fault.kind]) not in outcome.recoveries]
    if missing:
        raise ForgeError(f"faults without a recovery: {missing}; recoveries: {outcome.recoveries}")


def hash_rounds(seconds: float) -> int:
    """Return how many rounds of hashing take about `seconds` of CPU time here."""
    block, trials = bytes(BLOCK), 20
    start = time.thread_time()
    for _ in range(trials):
        hashlib.sha256(block).digest()
    return max(round(seconds * trials / (time.thread_time() - start)), 1)


def _with_fault(task: Task, fault: tuple[str, float] | None) -> Task:
    if fault is None:
        return task
    return replace(task, arguments=task.arguments | {"fault": fault})
