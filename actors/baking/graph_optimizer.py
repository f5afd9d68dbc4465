"""GraphOptimizer: see `phases.baking.tuning.optimise_graph`."""

from actors.agent import Agent
from phases.baking import tuning
from phases.baking.evidence import Evidence
from phases.baking.phase import Order


class GraphOptimizer(Agent):
    """Finds the passes of the runtime that help this graph here. It rejects those that do not."""

    def work(self, task: str, order: Order) -> Evidence:
        """Export and ablate."""
        return tuning.optimise_graph(order)
