"""ModelOptimizer: teaches the model to follow prompts, bakes one, and makes smaller files of what comes out."""

from actors.trainer import Trainer
from phases.baking import phase, tuning
from phases.baking.evidence import FOLDER, Evidence
from phases.baking.phase import Order
from phases.contract import ModelRef
from phases.training.config import TrainingConfig


class ModelOptimizer(Trainer):
    """Changes weights. It rejects a baking that leaves the model further from its target, and files no smaller."""

    def instruct(self, task: str, order: Order) -> ModelRef:
        """Train on dialogues, from the newest checkpoint."""
        given = self._slower(order.config.instruction.training)
        slower = order.config.instruction.model_copy(update={"training": given})
        order = Order(order.run, order.parent, order.config.model_copy(update={"instruction": slower}), order.seed)
        return self.resumed(
            task,
            "instruct",
            FOLDER,
            given,
            lambda state, save, on_step: phase.instruct(order, state=state, save=save, on_step=on_step),
        )

    def bake(self, task: str, order: Order) -> ModelRef:
        """Train adapters, from the newest checkpoint, and merge them."""
        given = self._slower(order.config.prompt_baking.training)
        slower = order.config.prompt_baking.model_copy(update={"training": given})
        order = Order(order.run, order.parent, order.config.model_copy(update={"prompt_baking": slower}), order.seed)
        return self.resumed(
            task,
            "bake",
            FOLDER,
            given,
            lambda state, save, on_step: phase.bake_model(order, state=state, save=save, on_step=on_step),
        )

    def transform(self, task: str, order: Order) -> Evidence:
        """Make the candidates' files."""
        return tuning.transform(order)

    def _slower(self, training: TrainingConfig) -> TrainingConfig:
        """Return the training with the learning rate that is left after rollbacks."""
        rate = training.learning_rate * self.attempt.learning_rate_factor
        return training.model_copy(update={"learning_rate": rate})
