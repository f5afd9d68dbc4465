"""Phase 2 as plain functions: what is searched over, the winner's model, and the result with its claims.

The search itself runs on Ray, elsewhere.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

import torch
from torch import Tensor

from phases import modeldir, rundir, storage
from phases.cognate.loading import LoadedModel, load_model, model_config
from phases.cognate.phase import WARM_UP
from phases.contract import Baseline, Claim, ModelRef, PhaseResult, Probe
from phases.corpus.packed import Corpus
from phases.errors import ArtifactError
from phases.evomerge.candidate import Parents, Positions
from phases.evomerge.config import EvoMergeConfig, FitnessData
from phases.evomerge.evaluate import Evaluator, Race, sample_model
from phases.evomerge.finals import decide
from phases.evomerge.fitness import best_of, fitness_rows
from phases.evomerge.genome import first_genomes, identity, merge_space
from phases.evomerge.heldout import HeldOut, held_out
from phases.evomerge.ledger import Ledger
from phases.evomerge.search import FOLDER, RESULTS, Replay, SearchPlan, ledger_folder, read_search, summary
from phases.evomerge.space import Genome
from phases.evomerge.statistics import diagonal_fisher_of, gram_matrices
from phases.probes import RunFiles, claim, measure
from phases.seeds import child_seed

_STATISTICS_LENGTH = 128  # tokens of a row that Fisher and RegMean are measured on


@dataclass(frozen=True)
class Search:
    """A plan, what measures its candidates, and what measures those of the finals."""

    plan: SearchPlan
    evaluator: Evaluator
    judge: Evaluator


def prepare(files: RunFiles, config: EvoMergeConfig, seed: int) -> Search:
    """Load the parents and the data, and measure the parents. Raises `ArtifactError` for anything damaged."""
    key = ("evomerge/prepare", seed, config.model_dump_json())
    if key not in files.cache:
        files.cache[key] = _prepare(files.uri, config, seed)
    search: Search = files.cache[key]
    return search


def compare(files: RunFiles, config: EvoMergeConfig, seed: int) -> HeldOut:
    """Measure the winner and what it is compared with, on held-out data."""
    key = ("evomerge/compare", seed, config.model_dump_json())
    if key not in files.cache:
        winner = load_model(files.path(f"{FOLDER}/model"), device="cpu")
        variants = {role: loaded for role, loaded in load_parents(files.uri).items() if role != WARM_UP}
        parents = {role: (loaded.model.config, _tensors(loaded)) for role, loaded in variants.items()}
        model = (winner.model.config, _tensors(winner))
        files.cache[key] = held_out(model, parents, Corpus.of_run(files.uri), config, seed)
    found: HeldOut = files.cache[key]
    return found


def _prepare(run: str, config: EvoMergeConfig, seed: int) -> Search:
    corpus, loaded = Corpus.of_run(run), load_parents(run)
    rows = fitness_rows(corpus, config.data, "validation", seed)
    parents = _parents(loaded, corpus, config, seed)
    evaluator = Evaluator(parents, rows, seed, config.guard, _fingerprint(loaded, corpus, config, config.data))
    more, seen = config.finals.data, config.data.text_tokens
    judge = replace(
        evaluator,
        rows=fitness_rows(corpus, more, "validation", child_seed(seed, "evomerge", "finals"), skip=seen),
        fingerprint=_fingerprint(loaded, corpus, config, more, skip=seen),
    )
    positions, ledger = Positions(parents, seed), Ledger(ledger_folder(run))
    measured = {n: evaluator.recorded(identity(parents.names, n), positions, ledger) for n in parents.names}
    best = best_of(measured, config.fitness, rows.answer_tokens)
    if config.race is not None:
        few = rows.part(config.race.share)
        there = sample_model(*evaluator.build(identity(parents.names, best)), few).measured().perplexity
        evaluator = replace(evaluator, race=Race(config.race.share, config.race.limit * there))
    plan = SearchPlan(
        config=config,
        space=merge_space(config, parents.names, parents.n_layers),
        initial=tuple(first_genomes(config, parents.names, best, parents.n_layers)),
        seed=seed,
        best_parent=measured[best],
        answer_tokens=rows.answer_tokens,
    )
    return Search(plan, evaluator, judge)


def conclude(search: Search, done: Replay, ledger: Ledger) -> dict[str, Any]:
    """Return what a search and its finals found, as JSON values, from the ledger alone; measures nothing.

    Raises `ArtifactError` where the ledger lacks a measurement of the finals.
    """
    finalists = decide(search.plan, search.judge, done.everyone, ledger)
    return asdict(finalists[0]) | summary(done.engines) | {"finals": [asdict(finalist) for finalist in finalists]}


def load_parents(run: str) -> dict[str, LoadedModel]:
    """Return the models of phase 1 by role, the warm-up among them."""
    result = rundir.read_result(run, "cognate")
    return {role: load_model(storage.join(run, ref.uri), ref.sha256, "cpu") for role, ref in result.models.items()}


def finish(files: RunFiles, config: EvoMergeConfig, seed: int, start: datetime) -> PhaseResult:
    """Write the winner's model and return the result of the phase."""
    found = read_search(files.uri)
    if found is None:
        raise ArtifactError(f"{files.path(RESULTS)}: missing; the search has not finished")
    ref = write_winner(files, config, seed, found["genome"])
    claims = _claims(files, config, seed)
    low, high = compare(files, config, seed).gain_interval(seed)
    generations = storage.names(files.path(f"{FOLDER}/generations"))
    end = datetime.now(start.tzinfo)
    return PhaseResult(
        success=True,
        phase="evomerge",
        model=ref,
        metrics={
            "evomerge/search_fitness": found["search_fitness"],
            "evomerge/finals_fitness": found["fitness"],
            "evomerge/held_out_gain_low": low,
            "evomerge/held_out_gain_high": high,
        },
        claims=tuple(claims),
        artifacts={
            "evomerge_50gen_final_results.json": RESULTS,
            "evomerge_best_model": f"{FOLDER}/model",
            **{name.removesuffix(".json"): f"{FOLDER}/generations/{name}" for name in generations},
        },
        config=config.model_dump(mode="json") | {"seed": seed},
        start_time=start,
        end_time=end,
        duration_seconds=(end - start).total_seconds(),
    )


def _tensors(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in loaded.model.state_dict().items()}


def _parents(loaded: dict[str, LoadedModel], corpus: Corpus, config: EvoMergeConfig, seed: int) -> Parents:
    variants = {role: model for role, model in loaded.items() if role != WARM_UP}
    parents = Parents(
        base=_tensors(loaded[WARM_UP]),
        models={role: _tensors(model) for role, model in variants.items()},
        configs={role: model.model.config for role, model in variants.items()},
    )
    if "dfs" not in config.techniques:
        return parents
    batch = corpus.batch(
        0,
        batch_size=config.statistics_rows,
        seq_len=_STATISTICS_LENGTH,
        mix={"text": 1.0},
        seed=child_seed(seed, "evomerge", "statistics"),
    )
    rows = torch.from_numpy(batch)
    return replace(
        parents,
        fishers={role: diagonal_fisher_of(model.model, rows) for role, model in variants.items()},
        grams={role: gram_matrices(model.model, rows) for role, model in variants.items()},
    )


def _fingerprint(
    loaded: dict[str, LoadedModel], corpus: Corpus, config: EvoMergeConfig, data: FitnessData, skip: int = 0
) -> str:
    content = {
        "models": {role: model.ref.sha256 for role, model in loaded.items()},
        "corpus": storage.read_json(str(corpus.folder / "corpus.json"))["files"],
        "data": data.model_dump() | {"skip": skip},
        "statistics": config.statistics_rows,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_winner(files: RunFiles, config: EvoMergeConfig, seed: int, genome: Genome) -> ModelRef:
    """Write the model of a genome as what the phase hands on."""
    titan, tensors = prepare(files, config, seed).evaluator.build(genome)
    loaded = load_parents(files.uri)
    lineage = modeldir.Lineage(
        phase="evomerge",
        seed=seed,
        parents={role: model.ref.sha256 for role, model in loaded.items()},
        config={"genome": dict(genome)},
    )
    ref = modeldir.save_model(
        files.path(f"{FOLDER}/model"),
        tensors=tensors,
        config=model_config(titan),
        tokenizer=Corpus.of_run(files.uri).tokenizer.to_str(),
        lineage=lineage,
    )
    return ref.model_copy(update={"uri": f"{FOLDER}/model"})


def _claims(files: RunFiles, config: EvoMergeConfig, seed: int) -> list[Claim]:
    arguments: dict[str, Any] = {"config": config.model_dump(mode="json"), "seed": seed}

    def held(quantity: str, of: str) -> Probe:
        return Probe(name="evomerge/held_out", arguments={"quantity": quantity, "of": of, **arguments})

    shapes: list[tuple[str, str, Literal["higher", "lower"], float]] = [
        ("fitness", "1 is the best parent", "higher", 0.005),
        ("perplexity", "per token", "lower", 0.05),
        ("accuracy", "share of answer tokens", "higher", 0.005),
    ]
    made = []
    for quantity, unit, better, tolerance in shapes:
        parent = Baseline(what="best parent", value=measure(files, held(quantity, "best_parent")).value)
        for of, key in (("winner", quantity), ("average", f"average/{quantity}")):
            probe = held(quantity, of)
            shape: dict[str, Any] = {"unit": unit, "better": better, "tolerance": tolerance, "baseline": parent}
            made.append(claim(files, f"evomerge/{key}", probe, **shape))
    for quantity, unit in (("generations", "generations"), ("diversity", "of the parents' largest distance")):
        probe = Probe(name="evomerge/search", arguments={"quantity": quantity, **arguments})
        made.append(claim(files, f"evomerge/{quantity}", probe, unit=unit, better="lower", tolerance=1e-6))
    return made
