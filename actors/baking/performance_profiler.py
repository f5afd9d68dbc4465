"""PerformanceProfiler: see `phases.baking.tuning.profile`."""

from actors.agent import Agent
from phases.baking import tuning
from phases.baking.evidence import Evidence
from phases.baking.phase import Order


class PerformanceProfiler(Agent):
    """Times the chosen file over lengths. It rejects its own numbers where the machine was overloaded."""

    def work(self, task: str, order: Order) -> Evidence:
        """Time the chosen file."""
        return tuning.profile(order)
