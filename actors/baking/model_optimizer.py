"""ModelOptimizer: teaches the model to follow prompts, bakes one, and makes smaller files of what comes out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from actors.trainer import Trainer
from phases.baking import phase, tuning
from phases.baking.evidence import FOLDER, Evidence
from phases.baking.phase import Order
from phases.contract import ModelRef


class ModelOptimizer(Trainer):
    """Changes weights. It rejects a baking that leaves the model further from its target, and files no smaller."""

    def instruct(self, task: str, order: Order) -> ModelRef:
        """Train on dialogues, from the newest checkpoint."""
        return self._train(task, "instruct", order, "instruction", phase.instruct)

    def bake(self, task: str, order: Order) -> ModelRef:
        """Train adapters, from the newest checkpoint, and merge them."""
        return self._train(task, "bake", order, "prompt_baking", phase.bake_model)

    def transform(self, task: str, order: Order) -> Evidence:
        """Make the candidates' files."""
        return tuning.transform(order)

    def _train(
        self,
        task: str,
        role: str,
        order: Order,
        part: Literal["instruction", "prompt_baking"],
        work: Callable[..., ModelRef],
    ) -> ModelRef:
        """Do `work`, whose training is that of a part of the configuration, slowed where it was rolled back."""
        settings = getattr(order.config, part)
        training = self.slowed(settings.training)
        slower = settings.model_copy(update={"training": training})
        given = replace(order, config=order.config.model_copy(update={part: slower}))
        return self.resumed(
            task,
            role,
            FOLDER if order.run == self.run_uri else order.path(FOLDER),
            training,
            lambda state, save, on_step: work(given, state=state, save=save, on_step=on_step),
        )
