"""One search as a Ray Tune trial: a step is a generation, its candidates measured by a pool of evaluator actors.

The trial holds no models: parents are in the object store, read by all evaluators without a copy, and only genomes and
metrics travel. A restored trial goes on from its last checkpoint; what was measured since then is in the ledger, so
nothing is paid for twice and the result is that of an undisturbed search.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from actors.evaluators import EvaluatorPool
from actors.processes import Whereabouts
from phases.evomerge.engine import Candidate
from phases.evomerge.search import SearchPlan

_STATE = "engine.json"


@dataclass(frozen=True)
class Workers:
    """How to start an evaluator: a class with `measure` and `lose`, and what it is made with."""

    cls: type
    arguments: tuple[Any, ...]
    cpus: float = 1
    gpus: float = 0

    def spawn(self) -> Any:
        """Start one as an actor."""
        remote: Any = ray.remote
        return remote(max_restarts=0, num_cpus=self.cpus, num_gpus=self.gpus)(self.cls).remote(*self.arguments)


class Island(tune.Trainable):
    """The trial. Its configuration is `island`, a number; `plan`, `workers` and `home` are the same for all.

    `home` is the actor that runs the search and is told where the trial is, None where no actor does.
    """

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], plan: SearchPlan, workers: Workers, home: Any
    ) -> None:
        if home is not None:
            home.watch.remote(Whereabouts.here())
        self.plan = plan
        self.engine = plan.engine(config["island"])
        settings = plan.config
        self.pool = EvaluatorPool(workers.spawn, settings.workers, attempts=settings.attempts, timeout=settings.timeout)

    def step(self) -> dict[str, Any]:
        """Run a generation and return its record."""
        space, slots = self.plan.space, dict[str, list[int]]()
        unique = list[Candidate]()  # twins are measured once
        for candidate in self.engine.ask():
            genome = space.expressed(candidate.genome)
            if (key := json.dumps(genome, sort_keys=True)) not in slots:
                unique.append(Candidate(candidate.generation, candidate.slot, genome))
            slots.setdefault(key, []).append(candidate.slot)
        for candidate, measured in self.pool.measure(unique):
            for slot in slots[json.dumps(candidate.genome, sort_keys=True)]:
                self.engine.tell(slot, self.plan.outcome(measured))
        best = self.engine.best
        metrics = best.outcome.metrics if best else {}
        record = asdict(self.engine.history[-1]) | metrics
        return record | {"failures": self.pool.failures, "done": self.engine.finished}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, _STATE).write_text(json.dumps(self.engine.state()))

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        self.engine.load(json.loads(Path(checkpoint_dir, _STATE).read_text()))

    def cleanup(self) -> None:
        self.pool.stop()


def run_islands(
    plan: SearchPlan, workers: Workers, folder: str, callbacks: Sequence[tune.Callback], home: Any = None
) -> None:
    """Run all islands on Ray Tune, with its state in `folder`, going on from what is there.

    Raises `TuneError` where a trial failed.
    """
    bundles = [{}, *([{"CPU": workers.cpus, "GPU": workers.gpus}] * plan.config.workers)]
    trainable = tune.with_resources(
        tune.with_parameters(Island, plan=plan, workers=workers, home=home), tune.PlacementGroupFactory(bundles)
    )
    if tune.Tuner.can_restore(folder):
        tuner = tune.Tuner.restore(folder, trainable, resume_unfinished=True, restart_errored=True)
    else:
        parent, _, name = folder.rpartition("/")
        tuner = tune.Tuner(
            trainable,
            param_space={"island": tune.grid_search(list(range(plan.config.islands)))},
            tune_config=tune.TuneConfig(metric="best_fitness", mode="max"),
            run_config=tune.RunConfig(
                name=name,
                storage_path=parent,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_frequency=plan.config.checkpoint_every, num_to_keep=2
                ),
                callbacks=list(callbacks),
            ),
        )
    results = tuner.fit()
    for error in results.errors:
        raise error
