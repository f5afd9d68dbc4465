"""The evolution engine as a Ray Tune search algorithm, for use in anyone's `Tuner`.

    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=EvoSearcher(space, config, metric="score", mode="max"),
            num_samples=-1,
            max_concurrent_trials=4,
        ),
    )

A trial's configuration is a genome: what it expresses, by name. Trials of one generation run side by side; the next
one begins when all of them have reported, so `max_concurrent_trials` beyond the population gains nothing.
"""

import json
from typing import Any

from ray.tune.search import Searcher

from phases.evomerge.engine import Candidate, EvoEngine, EvolutionConfig, Outcome
from phases.evomerge.space import Genome, Space


class EvoSearcher(Searcher):
    """Evolves genomes of `space`; fitness is the trials' `metric`, or its negative where `mode` is `min`."""

    def __init__(
        self,
        space: Space,
        config: EvolutionConfig,
        *,
        metric: str,
        mode: str = "max",
        seed: int = 0,
        initial: tuple[Genome, ...] = (),
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self.space = space
        self.engine = EvoEngine(space, config, seed, initial)
        self._running: dict[str, Candidate] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next genome, None while a generation waits for its last results, or `FINISHED`."""
        if self.engine.finished:
            return str(Searcher.FINISHED)
        taken = {candidate.slot for candidate in self._running.values()}
        for candidate in self.engine.ask():
            if candidate.slot not in taken:
                self._running[trial_id] = candidate
                return self.space.expressed(candidate.genome)
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take a trial's last result; one that failed counts as lost."""
        if (candidate := self._running.pop(trial_id, None)) is None:
            return
        if error or result is None or self.metric not in result:
            self.engine.tell(candidate.slot, Outcome(lost=True))
            return
        score = float(result[str(self.metric)]) * (1 if self.mode == "max" else -1)
        self.engine.tell(candidate.slot, Outcome(fitness=score, objectives=(-score,)))

    def save(self, checkpoint_path: str) -> None:
        """Write the state of the search. Trials that run now are asked for again after a restore."""
        with open(checkpoint_path, "w", encoding="utf-8") as file:
            json.dump(self.engine.state(), file)

    def restore(self, checkpoint_path: str) -> None:
        """Go on from what `save` wrote, with the same space, configuration and seed."""
        with open(checkpoint_path, encoding="utf-8") as file:
            self.engine.load(json.load(file))
        self._running.clear()
