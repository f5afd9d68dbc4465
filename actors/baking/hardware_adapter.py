"""HardwareAdapter: see `phases.baking.tuning.adapt`."""

from actors.agent import Agent
from phases.baking import tuning
from phases.baking.evidence import Evidence
from phases.baking.phase import Order


class HardwareAdapter(Agent):
    """Finds out what the machine can do. It rejects what it could not run."""

    def work(self, task: str, order: Order) -> Evidence:
        """Probe the machine."""
        return tuning.adapt(order)
