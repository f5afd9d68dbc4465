"""QualityValidator: measures models and judges other agents' evidence, in a process that has made none of it."""

from actors.agent import Agent
from phases.baking import judge
from phases.baking.evidence import Evidence
from phases.baking.phase import Order


class QualityValidator(Agent):
    """Measures again what others claim. It rejects a model below the prompted one, and every claim that is refuted."""

    def validate(self, task: str, order: Order) -> Evidence:
        """Measure the baked model."""
        return judge.validate(order)

    def audit(self, task: str, order: Order) -> Evidence:
        """Judge the files that others have left."""
        return judge.audit(order)
