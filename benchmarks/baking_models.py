"""Ten models through the baking phase at once over the same nine agents: all finish, none mixed, and in what time.

Each model has other weights, and a run directory of its own for what the phase leaves. A model counts where its result
is there, descends by hash from its own weights, is byte for byte what the same training makes of it alone, and where
its log names its own tasks, all of them and no others.

The bound is what no schedule can beat in which an agent does one task at a time, in the task durations of the same run:
the longest path through one model's plan, or for some agent the least that has to happen before its first task, all its
work, and the least that has to follow its last. With ten models it is the busiest agent that decides. Durations are
wall time, so that waiting for a core is inside them on both sides; the rest is scheduling.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actors.agent import Task
from benchmarks.baking_small import SMALL, write_model
from benchmarks.harness import Baseline, Figure, local_ray, progress, torch_threads
from coordinators.baking import BakingCoordinator
from coordinators.config import PipelineConfig
from coordinators.phase import RunContext
from phases import modeldir, rundir
from phases.baking import phase
from phases.baking.evidence import AGENTS, FOLDER
from phases.baking.phase import MODEL, STEERABLE, Order
from phases.contract import PhaseResult
from recovery.journal import Journal

_TOLD = ("task_started", "task_finished", "recovery")


@dataclass(frozen=True)
class Outcome:
    """What baking models at once made: results by model, seconds by `model/task`, and of all from the first start."""

    results: dict[str, PhaseResult]
    seconds: dict[str, float]
    makespan: float


def run(quick: bool) -> list[Figure]:
    """Bake 10 models at once; quickly, 3."""
    names = [f"model-{number}" for number in range(3 if quick else 10)]
    with TemporaryDirectory(prefix="models-") as folder:
        runs = {name: f"{folder}/run/models/{name}" for name in names}
        for seed, run_uri in enumerate(runs.values()):
            write_model(f"{run_uri}/{rundir.START}", seed)
        with local_ray(len(AGENTS), 150 << 20):
            outcome = bake(f"{folder}/run", runs)
        tasks, _ = _coordinator(f"{folder}/run", lambda *_, **__: None).plan(runs[names[0]])
        least, what = bound(tasks, names, outcome.seconds)
        progress(f"bound {least:.1f} s, {what}; took {outcome.makespan:.1f} s")
        with torch_threads(1):
            mixed = {name: mixed_up(uri, f"{folder}/alone/{name}", name, tasks) for name, uri in runs.items()}
    for name, why in mixed.items():
        progress(f"{name}: {', '.join(why) or 'as alone'}")
    whole = [float(name in outcome.results and not why) for name, why in mixed.items()]
    return [
        Figure(
            key="models_at_once",
            value=sum(whole),
            unit=f"of {len(names)} models finished, each of its own weights",
            better="higher",
            goal=len(names),
            raw={"whole": whole},
        ),
        Figure(
            key="makespan_ratio",
            value=outcome.makespan / least,
            unit=f"x the bound, {what}",
            better="lower",
            goal=1.2,
            baseline=Baseline(what="bound, s", value=least),
            raw={"task seconds": list(outcome.seconds.values())},
        ),
    ]


def bake(run_uri: str, runs: Mapping[str, str]) -> Outcome:
    """Bake all models at once."""
    starts, seconds, journal = dict[str, float](), dict[str, float](), Journal(run_uri)

    def emit(kind: str, **data: Any) -> None:
        now = time.perf_counter()
        if kind == "task_started":
            starts[data["task"]] = now
        elif kind == "task_finished":
            seconds[data["task"]] = now - starts[data["task"]]
        if kind in _TOLD:
            journal.note(kind, **data)

    results = asyncio.run(_coordinator(run_uri, emit).run_models(runs))
    makespan = time.perf_counter() - min(starts.values())
    journal.flush()
    return Outcome(results, seconds, makespan)


def _coordinator(run_uri: str, emit: Any) -> BakingCoordinator:
    return BakingCoordinator(RunContext(run_uri, emit), PipelineConfig(name="models", baking=SMALL))


def bound(tasks: Sequence[Task], models: Sequence[str], seconds: Mapping[str, float]) -> tuple[float, str]:
    """Return the seconds that no schedule can beat, and what makes it so.

    `tasks` are a model's, each after all that it waits for.
    """
    heads, tails = dict[str, float](), dict[str, float]()  # seconds that come before a task and after it, at least
    for model in models:
        for task in tasks:
            before = (heads[f"{model}/{name}"] + seconds[f"{model}/{name}"] for name in task.after)
            heads[f"{model}/{task.id}"] = max(before, default=0.0)
        for task in reversed(tasks):
            later = (each.id for each in tasks if task.id in each.after)
            after = (tails[f"{model}/{name}"] + seconds[f"{model}/{name}"] for name in later)
            tails[f"{model}/{task.id}"] = max(after, default=0.0)
    longest = max(heads[name] + seconds[name] for name in heads)
    found = [(longest, "the longest path")]
    of_agent = defaultdict[str, list[str]](list)
    for task in tasks:
        of_agent[task.agent] += [f"{model}/{task.id}" for model in models]
    for agent, own in of_agent.items():
        work = min(heads[name] for name in own) + sum(seconds[name] for name in own) + min(tails[name] for name in own)
        found.append((work, f"the work of {agent}"))
    return max(found, key=lambda each: each[0])


def mixed_up(run_uri: str, alone: str, name: str, tasks: Sequence[Task]) -> list[str]:
    """Return what of a model's result is not its own."""
    given = modeldir.open_ref(f"{run_uri}/{rundir.START}")
    write_model(f"{alone}/{rundir.START}", int(name.rpartition("-")[2]))
    order = Order(alone, rundir.handed_on(alone, "baking"), SMALL, 0)
    quiet: dict[str, Any] = {"state": None, "save": lambda state: None, "on_step": lambda step: None}
    wanted = phase.instruct(order, **quiet).sha256, phase.bake_model(order, **quiet).sha256
    found = tuple(modeldir.open_ref(f"{run_uri}/{path}").sha256 for path in (STEERABLE, MODEL))
    lineages = [modeldir.load_lineage(f"{run_uri}/{path}") for path in (STEERABLE, MODEL)]
    parents = [lineage.parents["parent"] for lineage in lineages]
    log = json.loads(Path(run_uri, FOLDER, "agent_coordination_log.json").read_text())
    ended = sorted(entry["task"] for entry in log if entry["kind"] == "task_finished")
    return [
        what
        for what, good in {
            "other weights than alone": found == wanted,
            "a stranger's child": parents == [given.sha256, found[0]],
            "a log with other tasks": ended == sorted(f"{name}/{task.id}" for task in tasks if task.id != "finish"),
        }.items()
        if not good
    ]
