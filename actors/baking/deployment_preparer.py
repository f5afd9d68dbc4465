"""DeploymentPreparer: see `phases.baking.tuning.prepare`."""

from actors.agent import Agent
from phases.baking import tuning
from phases.baking.evidence import Evidence
from phases.baking.phase import Order


class DeploymentPreparer(Agent):
    """Packs what was chosen. It rejects a package that cannot answer by itself."""

    def work(self, task: str, order: Order) -> Evidence:
        """Pack it and have it answer."""
        return tuning.prepare(order)
