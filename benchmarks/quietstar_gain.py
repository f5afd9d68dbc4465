"""Do thoughts help where they can? Serial arithmetic from several seeds, with controls that must not help.

Controls at test time swap a trained model's thoughts; trained twins have had other thoughts, or none, from the start.
What thoughts have taught is then to be known without them: as Fast-Quiet-STaR shortens them, and as ponder steps.
Before Quiet-STaR the coherence of thoughts is judged: does it tell them from corrupted ones, and right from wrong?
"""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Baseline, Figure, each_seed, progress
from benchmarks.quietstar_task import (
    OPERATIONS,
    THOUGHTS,
    accuracy,
    direct_accuracy,
    documents,
    internalised,
    ponders,
    prior,
    quietstar,
    reads_on,
    shortened,
    task_learning,
)
from phases.cognate.titan import TinyTitan
from phases.quietstar import coherence, sources
from phases.quietstar.config import Injection, LearningConfig, SamplingConfig
from phases.quietstar.measure import measure_text
from phases.quietstar.thinker import Thinker
from phases.seeds import torch_rng

GREEDY = SamplingConfig(temperature=0)
PRIOR_STEPS, UPDATES, STAGE_UPDATES, PONDER_UPDATES = 2500, 100, 60, 2500


def figures(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """Train from every seed, with controls at test time, trained twins, and coherence before.

    Quickly, ponder steps are taught for too short a time to have learned more than their first.
    """
    found = each_seed(partial(_measure, 100 if quick else PONDER_UPDATES), seeds)
    return _task_figures({key: [of_seed[key] for of_seed in found] for key in found[0]}, quick)


def _measure(ponder_updates: int, seed: int) -> dict[str, float]:
    found = dict[str, float]()

    def note(key: str, value: float) -> None:
        found[key] = value
        progress(f"seed {seed}, {key}: {value:.3f}")

    greedy, model = sources.sampled(GREEDY), prior(seed, PRIOR_STEPS)
    for key, value in coherence_before(model, seed).items():
        note(key, value)
    note("before", accuracy(Thinker(model, THOUGHTS, task_learning()), greedy, seed))
    thinking = quietstar(model, seed, UPDATES, task_learning())
    note("thought_accuracy", accuracy(thinking, greedy, seed))
    for control in ("pause", "random"):
        note(f"swapped_{control}", accuracy(thinking, getattr(sources, control), seed))
    note("control_shuffled", accuracy(thinking, sources.shuffled(GREEDY), seed))
    for injection, value in injections(thinking, seed).items():
        note(f"gain_per_token_{injection}", value)
    note("control_none", direct_accuracy(reads_on(model, seed, UPDATES), seed))
    for control in ("pause", "random"):
        source = getattr(sources, control)
        twin = quietstar(model, seed, UPDATES, task_learning(policy_weight=0), source)
        note(f"control_{control}", accuracy(twin, source, seed))
    likelihood_only = quietstar(model, seed, UPDATES, task_learning(policy_weight=0))
    note("without_reinforce", accuracy(likelihood_only, greedy, seed))
    note("thought_free_shortened", direct_accuracy(shortened(thinking, seed, STAGE_UPDATES), seed))
    note("thought_free", direct_accuracy(internalised(thinking, seed, ponder_updates), seed))
    note("control_ponder", direct_accuracy(ponders(model, seed, ponder_updates), seed))
    return found


def _task_figures(found: dict[str, list[float]], quick: bool) -> list[Figure]:
    mean = {key: statistics.mean(series) for key, series in found.items()}
    thought, direct, pondered = found["thought_accuracy"], mean["control_none"], mean["control_ponder"]
    baseline = Baseline(what="answering directly, after as many updates", value=direct)
    figures = [
        Figure(
            key="thought_accuracy",
            value=sum(value >= 0.95 for value in thought),
            unit=f"seeds of {len(thought)} at .95 or more",
            better="higher",
            goal=0.8 * len(thought),
            baseline=baseline,
            raw={"seeds": thought},
        ),
        Figure(
            key="curriculum_kept",
            value=(mean["thought_free"] - pondered) / (mean["thought_accuracy"] - pondered),
            unit="of the gain, by ponder steps in place of thoughts",
            better="higher",
            goal=None if quick else 0.5,
            baseline=Baseline(what="as many ponder steps and updates, nobody's thoughts", value=pondered),
            raw={"thought free": found["thought_free"]},
        ),
    ]
    goals = {f"control_{name}": direct + 0.03 for name in ("pause", "random", "shuffled")}
    goals |= {"coherence_auc_min": 0.95, "coherence_auc_right_wrong": 0.60}
    for key, series in found.items():
        figures.append(
            Figure(
                key="thought_accuracy_mean" if key == "thought_accuracy" else key,
                value=min(series) if key == "coherence_auc_min" else mean[key],
                unit=_unit(key),
                better="lower" if key.startswith(("control", "swapped")) else "higher",
                goal=goals.get(key),
                baseline=baseline if _unit(key) == "share of answers" else None,
                low=min(series),
                high=max(series),
                raw={"seeds": series},
            )
        )
    return figures


def _unit(key: str) -> str:
    if key.startswith("gain_per_token"):
        return "nats saved by a thought token"
    return "area under the curve" if "auc" in key else "share of answers"


def injections(thinker: Thinker, seed: int) -> dict[str, float]:
    """Return the nats that a thought token saves, by what chooses a quarter of the places, and at all of them."""
    torch.manual_seed(seed)
    rows = documents(200, torch_rng(seed, "serial", "injection")).rows
    ones, found = np.ones(len(thinker.head_weight), np.int64), dict[str, float]()
    for injection in get_args(Injection):
        thinker.config = THOUGHTS.model_copy(update={"injection": injection, "share": 0.25})
        found[injection] = measure_text(thinker, rows, ones).gain_per_thought_token
    thinker.config = THOUGHTS
    return found


@torch.no_grad()
def coherence_before(model: TinyTitan, seed: int, count: int = 100) -> dict[str, float]:
    """Return how well the total tells sampled thoughts from corrupted ones, and right from wrong, before Quiet-STaR."""
    torch.manual_seed(seed)
    thinker = Thinker(model, THOUGHTS, LearningConfig(initial_weight=0.9)).eval()
    rows = documents(count, torch_rng(seed, "serial", "coherence")).rows
    seen, place = thinker.observe(rows), OPERATIONS + 1

    def scores(thoughts: Tensor) -> dict[str, Tensor]:
        tokens = seen.tokens.clone()
        tokens[:, place] = thoughts
        measured = coherence.components(coherence.evidence(thinker, rows, tokens.flatten(1, 2)))
        here = {name: score.view(count, -1, THOUGHTS.parallel)[:, place].flatten() for name, score in measured.items()}
        return here | {"total": coherence.total(here)}

    real = seen.tokens[:, place]
    own = scores(real)
    corrupted = {
        "shuffled": real.roll(1, 0),
        "random": torch.randint_like(real, 16, len(thinker.head_weight)),
        "constant": torch.full_like(real, int(real[0, 0, 0])),
    }
    areas = dict[str, float]()
    for kind, thoughts in corrupted.items():
        for name, score in scores(thoughts).items():
            areas[f"{name}_{kind}"] = coherence.auc(own[name], score)
            progress(f"AUC of {name} against {kind} thoughts: {areas[f'{name}_{kind}']:.3f}")
    right = (seen.mixed[:, place, :, 0] @ thinker.head_weight.T).argmax(-1) == rows[:, place + 1 : place + 2]
    right = right.flatten()
    return {
        "coherence_auc_min": min(areas.values()),
        "coherence_auc_right_wrong": coherence.auc(own["total"][right], own["total"][~right]),
    }
