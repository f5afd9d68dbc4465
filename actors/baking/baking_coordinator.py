"""BakingCoordinator: takes the model over, and says what came of the phase."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from actors.agent import Agent
from phases.baking import phase, result
from phases.baking.evidence import Evidence
from phases.baking.phase import Order
from phases.contract import PhaseResult
from recovery.journal import Event, Journal

_WORK = ("task_started", "task_finished")
_ENDS = ("pipeline_restarted", "run_resumed")
_NOTED_SECONDS, _POLL_SECONDS = 10.0, 0.05  # a coordinator puts what it notes in groups, 100 ms late


class BakingCoordinator(Agent):
    """Begins and ends the phase. It rejects a hand-off that is not whole, and a phase with a step without evidence."""

    def hand_off(self, task: str, order: Order) -> Evidence:
        """Check what the phase is given."""
        return phase.hand_off(order)

    def finish(self, task: str, order: Order, start: datetime) -> PhaseResult:
        """Return the result; the logs are what the run's journal has of the phase, and of this model of several."""
        events = self._told(task)
        log = [_entry(event) for event in events if event.kind in _WORK]
        recoveries = [_entry(event) for event in events if event.kind == "recovery"]
        return result.finish(order, start, log, recoveries)

    def _told(self, task: str) -> list[Event]:
        """Return the journal's events of this plan, once this attempt's start is there: what came before is then, too.

        Raises `TimeoutError` where it does not come.
        """
        model, deadline = task.rpartition("/")[0], time.monotonic() + _NOTED_SECONDS
        while True:
            events = Journal(self.run_uri).read()
            if _has_begun(events, self.phase, task):
                own = [event for event in events if event.data.get("phase") == self.phase]
                return [event for event in own if event.data.get("task", "").rpartition("/")[0] == model]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{task}: the run's journal has not got its start after {_NOTED_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)


def _has_begun(events: Sequence[Event], phase: str, task: str) -> bool:
    """Say whether the journal has a start of the task since it last failed or was stopped."""
    of_task = {"phase": phase, "task": task}.items()
    told = (
        event.kind
        for event in reversed(events)
        if event.kind in _ENDS or (event.kind in ("task_started", "recovery") and of_task <= event.data.items())
    )
    return next(told, "") == "task_started"


def _entry(event: Event) -> dict[str, Any]:
    return {"kind": event.kind, "time": event.time} | event.data
