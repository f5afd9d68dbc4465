"""Chaos: whole pipeline runs on a cluster of three nodes, under seeded plans of faults, against one undisturbed run.

Per seed there are storms of faults that must leave no trace in any model, one run with faults that change bytes by
design, one with faults that must stop it, and messages that are dropped, doubled and delayed. Whether a fault was
recovered from is read from the trace of the logical points: its work has to come by again, where a process died in
another process, by the strategy that the journal names; and the run has to end. Steps are counted in checkpoint
intervals.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.chaos_flow import carry
from benchmarks.chaos_flow import plan as message_plan
from benchmarks.chaos_judge import Verdict, executed_intervals, judge, judge_stops, planned_fired, same_models
from benchmarks.chaos_plan import CHANGED_BYTES, QUICK, STOPPING, points_of, stopping, storm
from benchmarks.chaos_run import CONFIG, DEFAULT_BUDGETS, ChaosRun, Outcome
from benchmarks.harness import Baseline, Figure, progress
from phases.errors import ConfigError
from recovery.faults import Fault, draw

_FAULTS, _STORMS, _MESSAGE_FAULTS = 50, 2, 7
_NO_STORM = _MESSAGE_FAULTS + len(CHANGED_BYTES) + len(STOPPING) + 1  # the last is the poison
_POISON_HITS = 7  # three retries, three restarts and the first attempt
_SECONDS_PER_FAULT = 10.0
_LIMIT_FACTOR, _LIMIT_SECONDS = 20.0, 900.0  # a run that takes longer than the greater of both has failed


@dataclass
class _Tally:
    """What all runs together show."""

    verdicts: list[Verdict] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    by_design: int = 0
    excess: list[float] = field(default_factory=list)
    as_planned: list[bool] = field(default_factory=list)
    stops: list[bool] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


def run(quick: bool, faults: int = _FAULTS, seed: int | None = None) -> list[Figure]:
    """Measure what so many faults do under 3 seeds, or the given one; quickly, 8 under one."""
    if faults < _NO_STORM + _STORMS:
        raise ConfigError.of("--faults", faults, "too few for each kind", f"give {_NO_STORM + _STORMS} or more")
    tally = _Tally()
    with TemporaryDirectory(prefix="chaos-") as folder:
        bench = _Bench(Path(folder), tally)
        for number in range(1 if quick else 3) if seed is None else [seed]:
            bench.quick(number) if quick else bench.full(number, faults)
    return _figures(tally)


class _Bench:
    """Runs one scenario after the other against the same undisturbed run."""

    def __init__(self, folder: Path, tally: _Tally) -> None:
        self.folder, self.tally = folder, tally
        self.clean = self._execute("clean", [], limit=_LIMIT_SECONDS)
        if not self.clean.ended:
            raise TimeoutError(f"the undisturbed run was not at its end after {_LIMIT_SECONDS:g} s")
        self.points = points_of(self.clean.trace)

    def quick(self, seed: int) -> None:
        """Six faults that leave no trace, one that changes bytes and one that stops the run."""
        self._storm(f"{seed}-storm", storm(seed, self.points, len(QUICK), QUICK))
        self._changing(f"{seed}-changing", draw(seed, self.points, CHANGED_BYTES[:1]))
        self._stopping(f"{seed}-stopping", draw(seed, self.points, STOPPING[:1]))

    def full(self, seed: int, faults: int) -> None:
        """Run everything under one seed, and once more with as many faults as the time of a run suggests."""
        for number in range(_STORMS):
            count = (faults - _NO_STORM + number) // _STORMS
            self._storm(f"{seed}-storm-{number}", storm(seed * _STORMS + number, self.points, count))
        self._changing(f"{seed}-changing", draw(seed, self.points, CHANGED_BYTES))
        self._stopping(f"{seed}-stopping", stopping(seed, self.points, _POISON_HITS))
        self._messages(f"{seed}-messages", message_plan(seed, _MESSAGE_FAULTS))
        paced = storm(seed, self.points, max(1, round(self.clean.seconds / _SECONDS_PER_FAULT)))
        outcome = self._storm(f"{seed}-paced", paced)
        self.tally.ratios.append(outcome.seconds / self.clean.seconds)

    def _execute(
        self, name: str, faults: Sequence[Fault], config: tuple[str, ...] = CONFIG, limit: float | None = None
    ) -> Outcome:
        folder = self.folder / name
        folder.mkdir()
        limit = max(_LIMIT_SECONDS, _LIMIT_FACTOR * self.clean.seconds) if limit is None else limit
        outcome = ChaosRun(folder, list(faults), config).execute(limit)
        progress(f"{name}: {len(outcome.fired)} of {len(faults)} faults, {outcome.seconds:.0f} s")
        self.tally.as_planned.append(planned_fired(outcome))
        return outcome

    def _storm(self, name: str, faults: Sequence[Fault]) -> Outcome:
        outcome = self._execute(name, faults)
        self.tally.verdicts += judge(outcome, self.clean)
        self.tally.same += same_models(outcome, self.clean)
        self.tally.excess.append(executed_intervals(outcome) - executed_intervals(self.clean) - len(faults))
        return outcome

    def _changing(self, name: str, faults: Sequence[Fault]) -> None:
        """Only the models that were struck may differ, and what is chosen among them."""
        outcome = self._execute(name, faults, (*CONFIG, "--phases=cognate"))
        self.tally.verdicts += judge(outcome, self.clean)
        struck = {f"cognate/{fault.point.step.split('/')[1].removeprefix('train ')}" for fault in faults} | {"cognate"}
        later = {name for name in self.clean.hashes if not name.startswith("cognate")}  # not run here
        self.tally.same += same_models(outcome, self.clean, struck | later)
        self.tally.by_design += len(struck) - 1

    def _stopping(self, name: str, faults: Sequence[Fault]) -> None:
        outcome = self._execute(name, faults, (*CONFIG, *DEFAULT_BUDGETS))
        self.tally.stops += judge_stops(outcome)
        self.tally.same += same_models(outcome, self.clean)

    def _messages(self, name: str, faults: Sequence[Fault]) -> None:
        fired, lost, twice, seconds = carry(self.folder / name, list(faults))
        self.tally.as_planned.append({item.fault for item in fired} == set(faults))
        good = not lost and not twice
        self.tally.verdicts += [Verdict(item.fault, "message", seconds if good else None) for item in fired]
        progress(f"{name}: {len(fired)} of {len(faults)} faults, {lost} lost, {twice} handled twice")


def _share(values: Iterable[bool]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _figures(tally: _Tally) -> list[Figure]:
    """Return the figures; those by strategy are the median seconds until the work was where it had been."""
    recovered = [verdict.seconds is not None for verdict in tally.verdicts]
    by_strategy = defaultdict[str, list[Verdict]](list)
    for verdict in tally.verdicts:
        by_strategy[verdict.strategy].append(verdict)
    raw = {
        f"{name}: recovered": [float(verdict.seconds is not None) for verdict in verdicts]
        for name, verdicts in sorted(by_strategy.items())
    }
    unit = f"of {len(recovered)} recoverable faults"
    figures = [
        Figure(key="recovered_share", value=_share(recovered), unit=unit, better="higher", goal=1, raw=raw),
        _share_figure("same_bytes", tally.same, f"models; {tally.by_design} more changed by design"),
        _share_figure("escalated_rightly", tally.stops, "stops"),
        _share_figure("fired_as_planned", tally.as_planned, "runs whose log of fired faults is the plan"),
        Figure(
            key="executed_excess",
            value=max(tally.excess),
            unit="checkpoint intervals beyond clean + faults, worst run",
            better="lower",
            goal=0,
            raw={"excess": tally.excess},
        ),
    ]
    if tally.ratios:
        figures.append(
            Figure(
                key="wall_ratio",
                value=statistics.median(tally.ratios),
                unit="x",
                better="lower",
                goal=1.5,
                baseline=Baseline(what="seconds of the undisturbed run per fault", value=_SECONDS_PER_FAULT),
                raw={"ratios": tally.ratios},
            )
        )
    for name, verdicts in sorted(by_strategy.items()):
        if name != "message" and (seconds := [v.seconds for v in verdicts if v.seconds is not None]):
            key = f"mttr_{name.replace(' ', '_')}"
            figures.append(
                Figure(key=key, value=statistics.median(seconds), unit="s", better="lower", raw={"seconds": seconds})
            )
    return figures


def _share_figure(key: str, values: Sequence[bool], what: str) -> Figure:
    unit = f"of {len(values)} {what}"
    return Figure(
        key=key, value=_share(values), unit=unit, better="higher", goal=1, raw={key: [float(v) for v in values]}
    )
