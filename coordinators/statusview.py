"""`forge status` for people: tables in a terminal, and with `--watch` drawn again until the run ends.

Where the output is no terminal, a watch prints a line for each thing that has changed, so that a log stays readable.
All text comes from files and is never taken for markup.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coordinators.status import age, run_status
from phases import storage
from phases.errors import ArtifactError

_LISTED = 5
_LOCAL_SECONDS, _REMOTE_SECONDS = 1.0, 5.0
_FAILED_LOOKS = 10  # in a row; a run is written while we read
_METRICS = ("loss", "tokens_per_second", "best_fitness")
_GB = 1e9


def watch(run: str, show: Callable[[dict[str, Any]], None], *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a run's status again and again until nobody works in it any more.

    Raises `ArtifactError` where it cannot be read, several times in a row.
    """
    failures = 0
    while True:
        try:
            state = run_status(run)
        except ArtifactError:
            failures += 1
            if failures < _FAILED_LOOKS:
                sleep(_LOCAL_SECONDS)
                continue
            raise
        failures = 0
        show(state)
        if not state["live"]:
            return
        sleep(_LOCAL_SECONDS if storage.is_local(run) else _REMOTE_SECONDS)


def watch_on(run: str, console: Console) -> None:
    """Watch a run on a console: redrawn in a terminal, lines elsewhere."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            watch(run, lambda state: live.update(render(state), refresh=True))
        return
    changes = Changes()

    def show(state: dict[str, Any]) -> None:
        for line in changes.of(state):
            console.print(Text(line), soft_wrap=True)

    watch(run, show)


class Changes:
    """What has changed in a status since the last one, as lines."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, state: Mapping[str, Any]) -> list[str]:
        """Return a line for each fact that is new or another."""
        facts = _facts(state)
        lines = [f"{what}: {how}" for what, how in facts.items() if self._known.get(what) != how]
        gone = [f"{what}: over" for what in self._known if what not in facts and what.startswith("now")]
        self._known = facts
        return lines + gone


def _facts(state: Mapping[str, Any]) -> dict[str, str]:
    facts = {"run": f"{state['run']} ({state['preset']})", "state": str(state["state"])}
    facts |= {f"problem {number}": str(problem) for number, problem in enumerate(state["problems"], 1)}
    facts |= {f"phase {name}": str(how) for name, how in state["phases"].items()}
    facts |= {f"task {name}": str(how) for name, how in state["tasks"].items()}
    facts |= {f"checkpoint {name}": f"step {step}" for name, step in state["checkpoints"].items()}
    facts |= {f"breaker {name}": str(how) for name, how in state["breakers"].items()}
    facts |= {f"recoveries by {name}": str(count) for name, count in state["recoveries_by_strategy"].items()}
    facts |= {f"dead letters to {name}": str(len(q["dead"])) for name, q in state["queues"].items() if q["dead"]}
    facts |= {f"now {key}": str(alert["text"]) for key, alert in state["health"].get("alerts", {}).items()}
    return facts


def render(state: Mapping[str, Any]) -> RenderableType:
    """Return a status as tables."""
    return Group(*_parts(state))


def _parts(state: Mapping[str, Any]) -> Iterator[RenderableType]:
    now = float(state["time"])
    yield Text(f"{state['run']} ({state['preset']})", style="bold")
    yield Text(str(state["state"]), style="red" if state["state"].startswith("stopped") else "")
    yield from (Text(problem, style="red") for problem in state["problems"])
    yield Text("phases: " + ", ".join(f"{name} {how}" for name, how in state["phases"].items()))
    yield from _lines("degraded", [f"{phase}: {'; '.join(found)}" for phase, found in state["degraded"].items()])
    if state["tasks"]:
        yield _table("task", "state", rows=list(state["tasks"].items()))
    if state["live"] and state["agents"]:
        yield _table("agent", "at", "progress", "answered", rows=[_agent(*item) for item in state["agents"].items()])
    yield from _lines("checkpoints", [f"{role} at step {step}" for role, step in state["checkpoints"].items()])
    counts = ", ".join(f"{strategy} {count}" for strategy, count in state["recoveries_by_strategy"].items())
    yield from _lines(f"recoveries ({counts})", state["recoveries"][-_LISTED:])
    yield from _lines("breakers", [f"{name} {how}" for name, how in state["breakers"].items()])
    if state["queues"]:
        rows = [(name, q["pending"], q["retrying"], len(q["dead"])) for name, q in state["queues"].items()]
        yield _table("receiver", "pending", "retrying", "dead", rows=rows)
    yield from _lines("dead letters", _dead_letters(state["queues"]))
    if state["health"]:
        yield from _health(state["health"], now)
    told = [f"{age(alert['time'], now)} ago: {alert['text']}" for alert in state["alerts"][-_LISTED:]]
    yield from _lines("alerts", told)


def _health(health: Mapping[str, Any], now: float) -> Iterator[RenderableType]:
    rates = health["rates"]
    yield Text(f"health, {age(health['time'], now)} ago", style="bold")
    yield Text(f"  available: {health['availability']['text']}")
    failed = f"{rates['errors']} of {rates['attempts']} attempts failed, {rates['reruns']} run again"
    yield Text(f"  in {rates['window_seconds'] / 60:.1f} min: {failed}")
    columns = ("node", "CPU", "memory", "disk free", "GPU")
    yield _table(*columns, rows=[_node(*item) for item in health["nodes"].items()])
    yield from _lines(
        "now", [f"for {age(alert['since'], now)}: {alert['text']}" for alert in health["alerts"].values()]
    )


def _node(name: str, stats: Mapping[str, Any]) -> tuple[str, ...]:
    memory = stats["memory"]
    disks = [f"{disk['free'] / _GB:.0f} of {disk['total'] / _GB:.0f} GB" for disk in stats["disks"].values()]
    gpus = [f"{gpu['percent']} % {gpu['used'] / _GB:.0f}/{gpu['total'] / _GB:.0f} GB" for gpu in stats["gpus"]]
    used = f"{memory['used'] / _GB:.1f} of {memory['total'] / _GB:.1f} GB"
    return name, f"{stats['cpu_percent']:.0f} % of {stats['cpus']}", used, ", ".join(disks), ", ".join(gpus) or "none"


def _agent(name: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    progress = known.get("progress", {})
    at = f"{progress['step']}/{progress['steps']}" if progress.get("steps") else ""
    metrics = progress.get("metrics", {})
    shown = "  ".join(f"{key} {metrics[key]:.4g}" for key in _METRICS if key in metrics)
    silent = known["silent_seconds"]
    return name, at, shown, "never" if silent is None else f"{silent:.0f} s before"


def _dead_letters(queues: Mapping[str, Any]) -> list[str]:
    letters = [
        f"{receiver}: {letter['topic']} {letter['number']} of {letter['source']}, {letter['body']}: {letter['reason']}"
        for receiver, queue in queues.items()
        for letter in queue["dead"]
    ]
    more = len(letters) - _LISTED
    return letters[:_LISTED] + ([f"and {more} more"] if more > 0 else [])


def _lines(title: str, lines: list[str]) -> Iterator[RenderableType]:
    if lines:
        yield Text(title, style="bold")
        yield from (Text(f"  {line}") for line in lines)


def _table(*columns: str, rows: list[tuple[Any, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table
