"""What a run looks like in a terminal: progress bars with the time left and current metrics; elsewhere, plain lines.

Subscribes to the events of a run: plain dictionaries with `kind`, `phase`, `task` and, for progress, `step`, `steps`
and `metrics`. All of it goes to stderr, so that `--json` on stdout stays clean.
"""

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 10.0
_TOLD = {
    "agent_given_up": "{phase} {agent} given up: {reason}",
    "alert": "{level}: {text}",
    "breaker": "{phase} {agent}: circuit breaker {after} ({reason})",
    "cluster_joined": "running on the Ray cluster at {address}",
    "recovery": "{phase} {task} {error_class}, {strategy}: {error}",
}
_SHOWN = ("loss", "tokens_per_second", "best_fitness", "diversity")


class LiveView:
    """Bars in a terminal; with `plain`, or where stderr is no terminal, a line at each milestone and every 10 s."""

    def __init__(self, *, plain: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.plain = plain or not self.console.is_terminal
        self._progress = _progress(self.console)
        self._bars: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}

    def __enter__(self) -> Self:
        if not self.plain:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.plain:
            self._progress.stop()

    def on_event(self, event: dict[str, Any]) -> None:
        """Show an event."""
        if event["kind"] == "progress":
            self._on_progress(event)
            return
        if event["kind"] in _TOLD:
            self._say(_TOLD[event["kind"]].format(**event))
            return
        task = event.get("task")
        if event["kind"] == "task_finished" and task in self._bars:
            total = self._progress.tasks[self._bars[task]].total
            self._progress.update(self._bars[task], completed=total or 0)
        elif event["kind"] == "task_started" and not self.plain:
            self._bars[str(task)] = self._progress.add_task(str(task), total=None, metrics="")
        error = f": {event['error']}" if "error" in event else ""
        what = " ".join(str(event[key]) for key in ("phase", "task") if key in event)
        if self.plain or event["kind"] != "task_started":
            self._say(f"{what} {event['kind'].rpartition('_')[2]}{error}")

    def _on_progress(self, event: dict[str, Any]) -> None:
        task, metrics = event["task"], event["metrics"]
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics)
        if not self.plain:
            if task not in self._bars:
                self._bars[task] = self._progress.add_task(task, total=None, metrics="")
            self._progress.update(self._bars[task], completed=event["step"], total=event["steps"], metrics=shown)
        elif time.monotonic() - self._last_line.get(task, 0) >= _LINE_SECONDS:
            self._last_line[task] = time.monotonic()
            self._say(f"{event['phase']} {task} {event['step']}/{event['steps']}  {shown}")

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
        console=console,
    )
