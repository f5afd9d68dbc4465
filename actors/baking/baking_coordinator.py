"""BakingCoordinator: takes the model over, and says what came of the phase."""

from datetime import datetime
from typing import Any

from actors.agent import Agent
from phases.baking import phase, result
from phases.baking.evidence import Evidence
from phases.baking.phase import Order
from phases.contract import PhaseResult
from recovery.journal import Event, Journal

_WORK = ("task_started", "task_finished")


class BakingCoordinator(Agent):
    """Begins and ends the phase. It rejects a hand-off that is not whole, and a phase with a step without evidence."""

    def hand_off(self, task: str, order: Order) -> Evidence:
        """Check what the phase is given."""
        return phase.hand_off(order)

    def finish(self, task: str, order: Order, start: datetime) -> PhaseResult:
        """Return the result; the logs are what the run's journal has of the phase."""
        events = [event for event in Journal(self.run_uri).read() if event.data.get("phase") == self.phase]
        log = [_entry(event) for event in events if event.kind in _WORK]
        recoveries = [_entry(event) for event in events if event.kind == "recovery"]
        return result.finish(order, start, log, recoveries)


def _entry(event: Event) -> dict[str, Any]:
    return {"kind": event.kind, "time": event.time} | event.data
