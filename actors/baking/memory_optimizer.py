"""MemoryOptimizer: see `phases.baking.tuning.save_memory`."""

from actors.agent import Agent
from phases.baking import tuning
from phases.baking.evidence import Evidence
from phases.baking.phase import Order


class MemoryOptimizer(Agent):
    """Measures settings of memory in fresh processes. It rejects those that save none."""

    def work(self, task: str, order: Order) -> Evidence:
        """Measure the chosen file."""
        return tuning.save_memory(order)
