"""The agents of phase 2: the evolver runs the search on Ray Tune; evaluators merge and measure candidates."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import ray
import torch
from ray import tune

from actors.agent import Agent
from actors.evaluators import EvaluatorPool
from actors.island import Workers, run_islands
from actors.processes import Whereabouts, kill_once_stopped
from phases.contract import PhaseResult
from phases.evomerge import phase
from phases.evomerge.candidate import Positions
from phases.evomerge.config import EvoMergeConfig
from phases.evomerge.engine import Candidate
from phases.evomerge.evaluate import Evaluator
from phases.evomerge.finals import entrants
from phases.evomerge.fitness import Measured
from phases.evomerge.ledger import Ledger, Lost
from phases.evomerge.search import FOLDER, ledger_folder, read_search, replay, write_search
from phases.evomerge.shared import from_arrays, to_arrays
from phases.evomerge.space import Genome
from phases.probes import RunFiles
from recovery.faults import hook

_REPORTED = ("best_fitness", "average_fitness", "diversity", "perplexity", "accuracy", "stale", "lost", "failures")


class MergeEvaluator:
    """Measures candidates, each only once: what the ledger has is taken from there."""

    def __init__(self, arrays: Mapping[str, Any], evaluator: Mapping[str, Any], ledger: str) -> None:
        torch.set_num_threads(1)
        self.evaluator = Evaluator(parents=from_arrays(arrays), **evaluator)
        self.positions = Positions(self.evaluator.parents, self.evaluator.seed)
        self.ledger = Ledger(ledger)

    def measure(self, expressed: Genome) -> Measured:
        """Return the measurement of a candidate."""
        hook("measure", self.evaluator.key(expressed))
        return self.evaluator.recorded(expressed, self.positions, self.ledger)

    def lose(self, expressed: Genome, reason: str) -> None:
        """Note that a candidate is given up."""
        self.ledger.put(self.evaluator.key(expressed), Lost(reason))


class Evolver(Agent):
    """Runs the search, and makes the phase's result of it."""

    def __init__(self, run: str, phase: str, name: str) -> None:
        super().__init__(run, phase, name)
        self.files = RunFiles(run)  # with what both tasks need, once it is there
        self._watches = set[asyncio.Task[None]]()
        _evolvers[name] = self

    def evolve(self, task: str, config: EvoMergeConfig, seed: int, cpus: float, gpus: float) -> None:
        """Search until patience or generations are used up; what was found is in the run directory."""
        torch.set_num_threads(1)
        reports = _Reports(self.name, task, config.evolution.generations)
        home = ray.get_runtime_context().current_actor
        evolve(self.files, config, seed, cpus=cpus, gpus=gpus, callbacks=[reports], home=home)

    async def watch(self, island: Whereabouts) -> None:
        """Kill an island's process once it is frozen, which Tune would never notice: its death is a failed trial."""
        watch = asyncio.create_task(kill_once_stopped(island))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    def finish(self, task: str, config: EvoMergeConfig, seed: int, start: datetime) -> PhaseResult:
        """Return the result of the phase that began at `start`."""
        torch.set_num_threads(1)
        return phase.finish(self.files, config, seed, start)


def evolve(
    files: RunFiles,
    config: EvoMergeConfig,
    seed: int,
    *,
    cpus: float,
    gpus: float,
    callbacks: Sequence[tune.Callback] = (),
    worker: type = MergeEvaluator,
    home: Any = None,
) -> None:
    """Run the search of a run, going on from where it was; what is found is in the run directory.

    The parents are put into the object store once; `worker` is what each evaluator is made of, and `home` the actor
    that this runs in, if it does.
    """
    if read_search(files.uri) is not None:
        return
    search = phase.prepare(files, config, seed)
    arrays, ledger = ray.put(to_arrays(search.evaluator.parents)), Ledger(ledger_folder(files.uri))

    def workers(evaluator: Evaluator) -> Workers:
        others = {name: value for name, value in vars(evaluator).items() if name != "parents"}
        return Workers(worker, (arrays, others, ledger.folder), cpus, gpus)

    run_islands(search.plan, workers(search.evaluator), files.path(f"{FOLDER}/tune"), callbacks, home)
    done = replay(search.plan, search.evaluator, ledger)
    _measure(entrants(search.plan, done.everyone), workers(search.judge), config)
    write_search(files.uri, phase.conclude(search, done, ledger), config.checkpoint_every)


def _measure(genomes: Sequence[Genome], workers: Workers, config: EvoMergeConfig) -> None:
    """Have expressed genomes measured side by side; what is found is in the ledger."""
    pool = EvaluatorPool(workers.spawn, config.workers, attempts=config.attempts, timeout=config.timeout)
    try:
        for _ in pool.measure([Candidate(0, slot, genome) for slot, genome in enumerate(genomes)]):
            pass
    finally:
        pool.stop()


_evolvers: dict[str, Evolver] = {}  # of this process, by name


class _Reports(tune.Callback):
    """Passes the generations of the islands on as the agent's progress.

    Tune stores its callbacks and takes them from there when it goes on, so this one knows the agent by name only.
    """

    def __init__(self, agent: str, task: str, generations: int) -> None:
        self.agent, self.task, self.generations = agent, task, generations

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        agent = _evolvers[self.agent]
        done = result["number"] + 1
        metrics = {name: float(result[name]) for name in _REPORTED if name in result}
        metrics |= {"generation": done, "total_generations": self.generations, "progress": done / self.generations}
        agent.report(self.task, done, self.generations, metrics)
        record = {"task": "evolve", "island": trial.config["island"], "step": done} | metrics
        agent.log_metrics(f"{FOLDER}/metrics.jsonl", record)
