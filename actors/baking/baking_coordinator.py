"""BakingCoordinator: takes the model over, and says what came of the phase."""

import time
from datetime import datetime
from typing import Any

from actors.agent import Agent
from phases.baking import phase, result
from phases.baking.evidence import Evidence
from phases.baking.phase import Order
from phases.contract import PhaseResult
from recovery.journal import Event, Journal

_WORK = ("task_started", "task_finished")
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
        """Return the journal's events of this plan, once this task's start is there: what came before is then, too.

        Raises `TimeoutError` where it does not come.
        """
        model, deadline = task.rpartition("/")[0], time.monotonic() + _NOTED_SECONDS
        while True:
            events = [event for event in Journal(self.run_uri).read() if event.data.get("phase") == self.phase]
            if any(event.kind == "task_started" and event.data["task"] == task for event in events):
                return [event for event in events if event.data.get("task", "").rpartition("/")[0] == model]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{task}: the run's journal has not got its start after {_NOTED_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)


def _entry(event: Event) -> dict[str, Any]:
    return {"kind": event.kind, "time": event.time} | event.data
