"""The measurements behind the claims of phase 2: models on held-out data, and the search replayed from its ledger."""

import json
from typing import Any

from phases.evomerge import phase, search
from phases.evomerge.config import EvoMergeConfig
from phases.evomerge.ledger import Ledger
from phases.probes import Measurement, RunFiles, probe


@probe("evomerge/held_out")
def held_out(files: RunFiles, quantity: str, of: str, config: dict[str, Any], seed: int) -> Measurement:
    """Return the fitness, perplexity or accuracy of the winner, the average of the parents, or the best parent."""
    found = phase.compare(files, EvoMergeConfig.model_validate(config), seed)
    measured = found.measured(of)
    return Measurement(found.fitness(measured) if quantity == "fitness" else float(getattr(measured, quantity)))


@probe("evomerge/search")
def search_found(files: RunFiles, quantity: str, config: dict[str, Any], seed: int) -> Measurement:
    """Return the generations or the diversity of the search, replayed from the ledger; no candidate is measured."""
    key = ("evomerge/search", seed, json.dumps(config, sort_keys=True))
    if key not in files.cache:
        prepared = phase.prepare(files, EvoMergeConfig.model_validate(config), seed)
        ledger = Ledger(search.ledger_folder(files.uri))
        done = search.replay(prepared.plan, prepared.evaluator, ledger)
        files.cache[key] = phase.conclude(prepared, done, ledger)
    return Measurement(float(files.cache[key][quantity]))
