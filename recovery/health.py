"""How healthy a run is, from what is observed of it: events, heartbeats, nodes and queues.

Availability is the share of calls to agents that were answered, tasks and heartbeats alike, while they have work. What
is judged raises alerts on trends: memory or disk that runs out, failures that rise, tasks that slow down. Everything is
fed from outside with its time in seconds; nothing here knows clocks, actors or files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from phases.settings import Settings
from recovery.taxonomy import RERUNS
from recovery.trends import Alarms, Alert, Availability, Series, Tally, upper_tail

_MISSED_TO_ALARM = 3
ENDED = ("task_finished", "task_failed")


class HealthSettings(Settings):
    """What is watched, and when it is worth an alert."""

    interval_seconds: float = Field(default=5.0, gt=0, description="between two looks at nodes, agents and queues")
    answer_seconds: float = Field(default=5.0, gt=0, description="without an answer in time a heartbeat has failed")
    window_seconds: float = Field(default=600.0, gt=0, description="of trends and of error and retry rates")
    availability_hours: float = Field(default=24.0, gt=0, description="window of the availability")
    horizon_minutes: float = Field(
        default=30.0, gt=0, description="alert where memory or disk lasts less, extrapolated"
    )
    throughput_share: float = Field(default=0.5, gt=0, lt=1, description="alert where a task's speed falls below it")


@dataclass
class _Agent:
    """What is known of one agent. While `expected`, a call that is not answered counts."""

    expected: bool = False
    task: str = ""
    answered: float | None = None
    missed: int = 0
    doubtful: list[float] = field(default_factory=list)  # unanswered calls; perhaps it was stopped since its work ended
    report: dict[str, Any] = field(default_factory=dict)


class Health:
    """Everything observed of one run since `start`."""

    def __init__(self, settings: HealthSettings, start: float) -> None:
        self.settings, self.start = settings, start
        self.alarms = Alarms()
        self._calls = Tally(settings.availability_hours * 3600, slots=1440)
        self._events = Tally(settings.window_seconds)
        self._agents: dict[str, _Agent] = {}
        self._nodes: dict[str, dict[str, Any]] = {}
        self._left: dict[tuple[str, str], Series] = {}  # by node and what it has of: memory, disk
        self._steps: dict[str, Series] = {}  # by task
        self._breakers: dict[str, str] = {}
        self._queues: dict[str, dict[str, Any]] = {}

    def on_event(self, kind: str, data: Mapping[str, Any], time: float) -> None:
        """Take an event of the run's journal, or progress."""
        if kind == "task_started":
            self._events.add(time, "attempts")
            self._agent(data).expected = True
            self._agent(data).task = data["task"]
        elif kind in ENDED:
            agent = self._agent(data)
            agent.expected, agent.task, agent.missed = False, "", 0
            agent.doubtful.clear()
            self._forget_steps(data)
            if kind == "task_finished":
                self._calls.add(time, "answered")
        elif kind == "recovery":
            self._calls.add(time, "failed")
            self._events.add(time, "errors")
            self._forget_steps(data)
            if data["strategy"] in RERUNS:
                self._events.add(time, "reruns")
            else:
                self._agent(data).expected = False
        elif kind == "progress":
            self._on_progress(data, time)
        elif kind == "breaker":
            self._breakers[breaker_key(data)] = str(data["after"])

    def on_heartbeat(self, agent: str, time: float, report: Mapping[str, Any] | None) -> None:
        """Take an agent's answer, or None where there was none in time."""
        known = self._agents.setdefault(agent, _Agent())
        if report is not None:
            self._calls.add(time, "answered")
            known.answered, known.missed, known.report = time, 0, dict(report)
        elif known.expected:
            known.missed += 1
            known.doubtful.append(time)

    def expected(self) -> set[str]:
        """Return the agents that have work under way, and so must be there."""
        return {name for name, agent in self._agents.items() if agent.expected}

    def keep_agents(self, there: set[str]) -> None:
        """Forget the agents that are neither there nor expected."""
        for name in [name for name, agent in self._agents.items() if name not in there and not agent.expected]:
            del self._agents[name]
        self.alarms.keep(("silent",), {f"silent {name}" for name in self._agents})

    def on_nodes(self, nodes: Mapping[str, Mapping[str, Any]], time: float) -> None:
        """Take what each node reports: see `coordinators/health.py`. Nodes that are not named are gone."""
        self._nodes = {name: dict(stats) for name, stats in nodes.items()}
        for name, stats in nodes.items():
            memory = stats["memory"]
            left = {"memory": memory["total"] - memory["used"]}
            left |= {f"disk {path}": disk["free"] for path, disk in stats["disks"].items()}
            for what, amount in left.items():
                self._left.setdefault((name, what), Series(self.settings.window_seconds)).add(time, amount)
        self._left = {key: series for key, series in self._left.items() if key[0] in nodes}
        self.alarms.keep(("memory", "disk"), {f"{what} {node}" for node, what in self._left})

    def on_queues(self, queues: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the status of the data flow, by receiver."""
        self._queues = {name: dict(queue) | {"dead": len(queue["dead"])} for name, queue in queues.items()}

    def judge(self, now: float) -> list[Alert]:
        """Settle what was in doubt, look at the trends and return the alerts that are new."""
        for agent in self._agents.values():
            settled = [time for time in agent.doubtful if time <= now - self.settings.interval_seconds]
            for time in settled:
                agent.doubtful.remove(time)
                self._calls.add(now, "failed")
        self._judge_agents(now)
        self._judge_resources(now)
        self._judge_errors(now)
        self._judge_throughput(now)
        return self.alarms.take()

    def availability(self, now: float) -> Availability:
        """Return the availability over its window."""
        counts = self._calls.counts(now)
        return Availability(counts.total(), counts["failed"])

    def report(self, now: float) -> dict[str, Any]:
        """Return everything as JSON can hold it. Times are seconds since the epoch, sizes bytes."""
        counts, minutes = self._events.counts(now), self._observed(now) / 60
        available = self.availability(now)
        low, high = available.interval
        return {
            "time": now,
            "observed_seconds": now - self.start,
            "nodes": self._nodes,
            "agents": {name: self._report_agent(agent, now) for name, agent in sorted(self._agents.items())},
            "rates": {
                "window_seconds": self._observed(now),
                **{name: counts[name] for name in ("attempts", "errors", "reruns")},
                **{f"{name}_per_minute": counts[name] / max(minutes, 1 / 60) for name in ("errors", "reruns")},
            },
            "breakers": self._breakers,
            "queues": self._queues,
            "availability": {
                "window_seconds": min(now - self.start, self.settings.availability_hours * 3600),
                **{"calls": available.calls, "failed": available.failed, "low": low, "high": high},
                **{"claim": available.claim, "text": available.text},
            },
            "alerts": {key: {"text": alert.text, "since": alert.time} for key, alert in self.alarms.active.items()},
        }

    def _agent(self, data: Mapping[str, Any]) -> _Agent:
        return self._agents.setdefault(agent_key(data["phase"], data["agent"]), _Agent())

    def _report_agent(self, agent: _Agent, now: float) -> dict[str, Any]:
        silent = None if agent.answered is None else now - agent.answered
        return {"task": agent.task, "silent_seconds": silent, "missed": agent.missed} | agent.report

    def _on_progress(self, data: Mapping[str, Any], time: float) -> None:
        task = agent_key(data["phase"], data["task"])
        if task in self._steps and data["step"] < self._steps[task].last:
            del self._steps[task]  # another stage, or back to a checkpoint
        series = self._steps.setdefault(task, Series(self.settings.window_seconds))
        series.add(time, data["step"])

    def _forget_steps(self, data: Mapping[str, Any]) -> None:
        task = agent_key(data["phase"], data["task"])
        self._steps.pop(task, None)
        self.alarms.active.pop(f"slow {task}", None)

    def _observed(self, now: float) -> float:
        return min(now - self.start, self.settings.window_seconds)

    def _judge_agents(self, now: float) -> None:
        for name, agent in self._agents.items():
            text = f"{name} has not answered {agent.missed} times in a row"
            self.alarms.judge(f"silent {name}", now, text, bad=agent.missed >= _MISSED_TO_ALARM, good=not agent.missed)
        for callee, state in self._breakers.items():
            text = f"calls of {callee} are refused: its circuit breaker is {state}"
            self.alarms.judge(f"breaker {callee}", now, text, bad=state in ("open", "isolated"), good=state == "closed")
        for receiver, queue in self._queues.items():
            text = f"{queue['dead']} messages to {receiver} are dead letters"
            self.alarms.judge(f"dead {receiver}", now, text, bad=queue["dead"] > 0, good=not queue["dead"])

    def _judge_resources(self, now: float) -> None:
        horizon = self.settings.horizon_minutes * 60
        for (node, what), series in self._left.items():
            left = series.seconds_left()
            text = f"{what} of {node} runs out in {left / 60:.0f} minutes, as it goes; {series.last / 1e9:.1f} GB left"
            self.alarms.judge(f"{what} {node}", now, text, bad=left < horizon, good=left > 2 * horizon)

    def _judge_errors(self, now: float) -> None:
        """Compare the newer half of the window with the older: the exact conditional test of two Poisson rates."""
        observed, half = self._observed(now), self.settings.window_seconds / 2
        older = observed - half
        if older < half / 2:
            return
        total, newer = self._events.counts(now)["errors"], self._events.newer_half(now)["errors"]
        chance = upper_tail(total, newer, half / observed)
        text = f"failures rise: {newer} in the last {half / 60:.3g} minutes, {total - newer} in {older / 60:.3g} before"
        self.alarms.judge("errors", now, text, bad=chance < 0.05, good=chance > 0.25)

    def _judge_throughput(self, now: float) -> None:
        least = self.settings.throughput_share
        for task, series in self._steps.items():
            if (speeds := series.speeds(now)) is None or not speeds[0]:
                continue
            share = speeds[1] / speeds[0]
            text = f"{task} has slowed down to {share:.0%}: {speeds[1]:.3g} steps/s after {speeds[0]:.3g}"
            self.alarms.judge(f"slow {task}", now, text, bad=share < least, good=share > (1 + least) / 2)


def agent_key(phase: str, name: str) -> str:
    """Return how an agent or task is named within its run."""
    return f"{phase}/{name}"


def breaker_key(data: Mapping[str, Any]) -> str:
    """Return whose breaker an event tells of: an agent's, or a receiver's of the data flow."""
    return str(data["callee"]) if "callee" in data else agent_key(data["phase"], data["agent"])
