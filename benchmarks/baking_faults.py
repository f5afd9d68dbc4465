"""Baking under faults: nine agents killed, frozen, out of memory, slow, failing, with torn files; the same artifacts.

Whole runs of phase 6 on real actors, each under a seeded plan in which every agent meets every kind of fault, many of
them several times in a row at one point; so the budgets of recovery are raised, and nothing else. A fault counts as
recovered from where its work came by again (in another process, where its own had died) by the strategy that the
journal names, as often as it was struck, and the run ended. Artifacts are compared byte by byte with those of a run
without faults, but for files that hold timings; which one is chosen goes by size, which no clock decides.
"""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.baking_small import SMALL, write_model
from benchmarks.chaos_flow import carry
from benchmarks.chaos_flow import plan as message_plan
from benchmarks.chaos_judge import Verdict, judge
from benchmarks.chaos_plan import points_of, task_of
from benchmarks.chaos_run import ChaosRun, Outcome
from benchmarks.harness import Figure, progress
from phases import storage
from phases.baking.evidence import AGENTS, FOLDER
from phases.errors import ConfigError
from phases.seeds import child_seed
from recovery.faults import Fault, Kind, Point, draw
from recovery.journal import Event

_FAULTS, _QUICK_FAULTS, _PER_RUN, _MESSAGE_FAULTS = 1000, 54, 200, 10
_LIMIT_SECONDS = 3600.0  # of a run; one that takes longer has failed
_SLOW_SECONDS = 0.5
_BUDGETS = (
    "--set=recovery.uses_per_task={retry: 1000, restart: 1000, fallback: 1000}",
    "--set=recovery.per_task=1000",
    "--set=recovery.per_phase=10000",
    "--set=recovery.per_run=10000",
    "--set=recovery.delays={initial_seconds: 0.05, max_seconds: 0.2, jitter_seconds: 0.05}",
    "--set=scheduling.breaker={open_seconds: 0.05, max_open_seconds: 0.1}",
    "--set=supervision.restarts=10000",
)
# what happens -> the kinds of faults that stand for it, in turn, and at which hooks
KINDS: Mapping[str, Sequence[tuple[Kind, Sequence[str]]]] = {
    "exception": ((Kind.TRANSIENT, ("progress",)), (Kind.LOST_OBJECT, ("progress",))),
    "kill": ((Kind.KILL, ("progress",)), (Kind.KILL, ("task.worked", "task.committed"))),
    "timeout": ((Kind.STOP, ("progress",)),),  # frozen, until its deadline
    "corrupt_file": ((Kind.TORN, ("write",)), (Kind.CORRUPT, ("checkpoint",))),
    "out_of_memory": ((Kind.RESOURCE, ("progress",)),),
    "slow": ((Kind.SLOW, ("progress", "write", "task.worked", "task.committed")),),
}
_WRITTEN_ONCE = ("evidence", "checkpoints", "steerable", "model", "baked_model.pt", "agent_coordination_log.json")
_LOGS = {
    "agent_coordination_log.json": ("task_started", "task_finished"),
    "error_recovery_log.json": ("recovery",),
}
# files whose content says how long something took
TIMED = frozenset(
    {
        "evidence/HardwareAdapter-probe.json",
        "evidence/GraphOptimizer-ablate.json",
        "evidence/InferenceAccelerator-compare.json",
        "evidence/MemoryOptimizer-measure.json",
        "evidence/PerformanceProfiler-profile.json",
        "evidence/DeploymentPreparer-package.json",
        "evidence/QualityValidator-audit.json",
        "optimise/as_optimised.onnx",
        "optimise/package/report.json",
        "optimise/package/session.json",
        "optimised/report.json",
        "optimised/session.json",
        "metrics.jsonl",
        "result.json",
        "baking_summary.json",
        "agent_coordination_log.json",
        "error_recovery_log.json",
    }
)


@dataclass
class _Tally:
    """What all runs together show."""

    planned: list[tuple[str, str, float | None]] = field(
        default_factory=list
    )  # what happens, agent, seconds to recover
    differing: list[float] = field(default_factory=list)  # 1 for each artifact of a run that is not the clean run's
    lost: int = 0
    doubled: int = 0
    messages: int = 0
    unplanned: int = 0


def run(quick: bool, faults: int | None = None, seed: int = 0) -> list[Figure]:
    """Strike the phase with so many faults, at most 200 a run (default: 1,000; quickly, 54)."""
    count = (_QUICK_FAULTS if quick else _FAULTS) if faults is None else faults
    if count < 1:
        raise ConfigError.of("--faults", count, "nothing to do", "give at least 1")
    runs, tally = -(-count // _PER_RUN), _Tally()
    with TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        config = _configuration(folder, seed)
        clean = _execute(folder / "clean", [], config)
        for number in range(runs):
            share = count // runs + (number < count % runs)
            struck = plan(child_seed(seed, "run", number), clean, share)
            _judge(_execute(folder / str(number), struck, config), clean, folder / str(number), tally)
        fired, lost, twice, _ = carry(folder / "messages", message_plan(seed, _MESSAGE_FAULTS))
        progress(f"{len(fired)} faults of messages: {lost} lost, {twice} handled twice")
    tally.lost, tally.doubled = tally.lost + lost, tally.doubled + twice
    return _figures(tally)


def plan(seed: int, clean: Outcome, count: int) -> list[Fault]:
    """Return `count` faults: every kind at every agent in turn, at points that an undisturbed run has come by.

    Several at one point strike one after the other, each when the work comes by again; what is only slow comes last,
    since nothing comes by again for it, and a checkpoint is torn once, for it is not written again to the same place.
    Raises `ValueError` where an agent has no point left to be slow at.
    """
    agents, known = agents_of(clean), [point for point in points_of(clean.trace) if _may_strike(point)]
    chosen = defaultdict[Point, list[Kind]](list)
    for number in range(count):
        turn, what = divmod(number, len(KINDS))
        turn, place = divmod(turn, len(AGENTS))
        own = [point for point in known if agents[task_of(point)] == AGENTS[place]]
        options = [(kind, [p for p in own if p.hook in hooks]) for kind, hooks in list(KINDS.values())[what]]
        kind, fit = options[turn % len(options)] if options[turn % len(options)][1] else options[0]
        fit = [p for p in fit if (kind is not Kind.SLOW or kind not in chosen[p]) and not (chosen[p] and _moves(p))]
        (fault,) = draw(child_seed(seed, "baking faults", number), fit, [(kind, lambda _: True)])
        chosen[fault.point].append(kind)
    return [
        Fault(kind, point, hit, _SLOW_SECONDS if kind is Kind.SLOW else 0.0)
        for point, kinds in chosen.items()
        for hit, kind in enumerate(sorted(kinds, key=lambda kind: kind is Kind.SLOW), 1)
    ]


def agents_of(clean: Outcome) -> dict[str, str]:
    """Return phase/task -> agent of an undisturbed run."""
    started = (event.data for event in clean.events if event.kind == "task_started")
    return {f"{data['phase']}/{data['task']}": data["agent"] for data in started}


def _may_strike(point: Point) -> bool:
    """Say whether a point is one of the nine agents', and of files, one that a task writes once."""
    if point.hook == "write":
        phase, _, path = point.step.partition("/")
        return phase == FOLDER and path.partition("/")[0] in _WRITTEN_ONCE
    where = point.step.startswith("baking/") and not point.step.startswith(("baking/model", "baking/corpus"))
    return point.hook == "checkpoint" or (where and point.hook in ("progress", "task.worked", "task.committed"))


def _moves(point: Point) -> bool:
    """Say whether a second attempt writes this file elsewhere."""
    return point.hook == "write" and point.step.startswith(f"{FOLDER}/checkpoints/")


def _configuration(folder: Path, seed: int) -> tuple[str, ...]:
    """Write the model and what is to be baked into it; return the arguments of the command line."""
    write_model(str(folder / "parent"), seed)
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({"baking": SMALL.model_dump(mode="json"), "model": str(folder / "parent")}))
    return ("--preset=smoke", f"--config={file}", "--phases=baking", f"--set=seed={seed}", *_BUDGETS)


def _execute(folder: Path, faults: Sequence[Fault], config: tuple[str, ...]) -> Outcome:
    folder.mkdir()
    outcome = ChaosRun(folder, list(faults), config, nodes=0, cpus=4).execute(_LIMIT_SECONDS)
    if not faults and not outcome.ended:
        raise TimeoutError(f"the undisturbed run was not at its end after {_LIMIT_SECONDS:g} s")
    outcome.hashes = artifacts(folder / "run")
    progress(f"{folder.name}: {len(outcome.fired)} of {len(faults)} faults, {outcome.seconds:.0f} s")
    return outcome


def artifacts(run: Path) -> dict[str, str]:
    """Return the hash of each file that phase 6 has left and that holds no timing."""
    folder = run / FOLDER
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".tmp-"))
    names = (str(file.relative_to(folder)) for file in files)
    return {name: storage.sha256(str(folder / name)) for name in sorted(names) if name not in TIMED}


def _judge(outcome: Outcome, clean: Outcome, folder: Path, tally: _Tally) -> None:
    verdicts = accounted(judge(outcome, clean), outcome)
    agents = agents_of(clean)
    tally.planned += [(_what(v.fault.kind), agents[task_of(v.fault.point)], v.seconds) for v in verdicts]
    names = sorted(outcome.hashes.keys() | clean.hashes.keys())
    different = [name for name in names if outcome.hashes.get(name) != clean.hashes.get(name)]
    tally.differing += [float(name in different) for name in names]
    messages, lost, doubled = read_messages(folder / "run", outcome.events)
    tally.messages, tally.lost, tally.doubled = tally.messages + messages, tally.lost + lost, tally.doubled + doubled
    recovered = [event for event in outcome.events if event.kind == "recovery"]
    tally.unplanned += len(recovered) - sum(v.strategy != "wait" for v in verdicts)
    for verdict in verdicts:
        if verdict.seconds is None:
            progress(f"  not recovered from: {verdict.fault}")
    progress(f"  {lost} messages lost, {doubled} doubled; other bytes: {', '.join(different) or 'none'}")


def _what(kind: Kind) -> str:
    return next(name for name, options in KINDS.items() if kind in [option for option, _ in options])


def accounted(verdicts: Sequence[Verdict], outcome: Outcome) -> list[Verdict]:
    """Return the verdicts; where the journal has fewer recoveries of a task than faults struck it, the last are bad."""
    left = Counter(
        (f"{event.data['phase']}/{event.data['task']}", event.data["strategy"])
        for event in outcome.events
        if event.kind == "recovery"
    )
    found = list[Verdict]()
    for verdict in verdicts:
        key = task_of(verdict.fault.point), verdict.strategy
        missing = verdict.strategy != "wait" and not left[key]
        left[key] -= 1
        found.append(Verdict(verdict.fault, verdict.strategy, None) if missing else verdict)
    return found


def read_messages(run: Path, events: Sequence[Event]) -> tuple[int, int, int]:
    """Return how many messages the agents' work has made, and how many of them are lost or there twice.

    Each task's end is told once in the journal. The documented logs, which are written before the last task ends, have
    what the journal has, each once.
    """
    told = [event for event in events if event.data.get("phase") == "baking" and "task" in event.data]
    ends = Counter(event.data["task"] for event in told if event.kind == "task_finished")
    lost, doubled = len({event.data["task"] for event in told} - ends.keys()), ends.total() - len(ends)
    for name, kinds in _LOGS.items():
        entries = [{"kind": event.kind, "time": event.time} | event.data for event in told if event.kind in kinds]
        known = Counter(map(_text, entries[:-1] if entries and entries[-1]["kind"] == "task_finished" else entries))
        logged = Counter(map(_text, json.loads((run / FOLDER / name).read_text())))
        lost, doubled = lost + (known - logged).total(), doubled + (logged - known).total()
    return len(told), lost, doubled


def _text(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True)


def _figures(tally: _Tally) -> list[Figure]:
    good = [seconds for _, _, seconds in tally.planned if seconds is not None]
    by_kind, by_agent = defaultdict[str, list[float]](list), Counter(agent for _, agent, _ in tally.planned)
    for what, _, seconds in tally.planned:
        if seconds is not None:
            by_kind[what].append(seconds)
    total, files = len(tally.planned), len(tally.differing)
    least = min(by_agent[agent] for agent in AGENTS)
    of = f"of {tally.messages} messages of nine agents, and of 480 of the data flow under {_MESSAGE_FAULTS} faults"
    return [
        Figure(
            key="faults_recovered",
            value=len(good),
            unit=f"of {total} injected faults, at least {least} at each of nine agents",
            better="higher",
            goal=total,
            raw=dict(by_kind),
        ),
        Figure(
            key="artifacts_different",
            value=sum(tally.differing),
            unit=f"files, of {files}, with other bytes than without faults",
            better="lower",
            goal=0,
            raw={"different": tally.differing},
        ),
        Figure(key="messages_lost", value=tally.lost, unit=of, better="lower", goal=0),
        Figure(key="messages_doubled", value=tally.doubled, unit=of, better="lower", goal=0),
        Figure(key="recoveries_unplanned", value=tally.unplanned, unit="beyond the injected faults", better="lower"),
        *(
            Figure(key=f"mttr_{what}", value=statistics.median(seconds), unit="s", better="lower", raw={"s": seconds})
            for what, seconds in by_kind.items()
        ),
    ]
