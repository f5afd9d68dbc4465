"""InferenceAccelerator: see `phases.baking.tuning.accelerate`."""

from actors.agent import Agent
from phases.baking import tuning
from phases.baking.optimise.candidates import Candidate
from phases.baking.phase import Order


class InferenceAccelerator(Agent):
    """Times candidates against the fastest full precision. It rejects what the whole interval does not speak for."""

    def work(self, task: str, order: Order) -> Candidate:
        """Compare and choose."""
        return tuning.accelerate(order).chosen
