"""Halting and memory, each against its alternatives: do the novel parts of TinyTitan earn their place?

Three questions, each on a task that is built so that the mechanism can matter and with test instances that nothing was
tuned on: which halting rule spends steps where they are needed (`cognate_pointer.py`), which write rule keeps what is
worth keeping (`cognate_recall.py`), and how much of the work that halting saves is also time saved.
"""

import copy
import statistics
from collections.abc import Callable

import torch

from benchmarks.cognate_pointer import CAP, RULES, Chased, Rule, measure_chaser, train_chaser
from benchmarks.cognate_recall import POLICIES, VALUES, measure_recall, train_recaller
from benchmarks.generate import set_mean_steps
from benchmarks.harness import Baseline, Figure, interleave, progress, torch_threads
from phases.cognate.presets import PRESETS
from phases.cognate.state import State
from phases.cognate.titan import TinyTitan

_BATCH, _MAX_STEPS, _BEFORE, _TOKENS = 32, 8, 140, 8


def run(quick: bool) -> list[Figure]:
    """Train all candidates from three seeds (quick: one, and shorter) on one thread."""
    seeds = range(1 if quick else 3)
    with torch_threads(1):
        figures = [*_halting(seeds, 300 if quick else 1000), *_memory(seeds, 200)]
    return [*figures, *(_early_exit(mean, 5 if quick else 15) for mean in (2.0, 4.0))]


def _figure(key: str, values: list[float], unit: str, goal: float | None = None, **more: object) -> Figure:
    """Return the mean over seeds, with the lowest and the highest seed as interval."""
    settings = {"better": "higher", "low": min(values), "high": max(values), "raw": {"seeds": values}} | more
    return Figure.model_validate({"key": key, "value": statistics.mean(values), "unit": unit, "goal": goal} | settings)


def _halting(seeds: range, iterations: int) -> list[Figure]:
    """Compare the halting rules after equally many iterations of equally many block calls."""
    found: dict[Rule, list[Chased]] = {rule: [] for rule in RULES}
    forced = []
    for seed in seeds:
        for rule in RULES:
            model = train_chaser(rule, seed, iterations)
            found[rule].append(measure_chaser(rule, model, seed, 1000))
            progress(f"halting, seed {seed}, {rule}: {found[rule][-1]}")
            if rule == "pondernet":
                forced.append(measure_chaser(rule, model, seed, 1000, sampled=True))
    learned = found["learned"]
    figures = [
        _figure("act_accuracy", [c.accuracy for c in learned], "share", 0.97),
        _figure("act_mean_steps", [c.mean_steps for c in learned], f"of {CAP} steps", 5.3, better="lower"),
        _figure("act_depth_correlation", [c.correlation for c in learned], "Spearman", 0.95),
        _figure("act_accuracy_forced_2", [statistics.mean(c.fixed[2][2:]) for c in learned], "share at depth 3 to 8"),
    ]
    others = {"graves": found["graves"], "pondernet": found["pondernet"], "pondernet_sampled": forced}
    for name, series in others.items():
        figures += [
            _figure(f"{name}_accuracy", [c.accuracy for c in series], "share"),
            _figure(f"{name}_mean_steps", [c.mean_steps for c in series], f"of {CAP} steps", better="lower"),
            _figure(f"{name}_depth_correlation", [c.correlation for c in series], "Spearman"),
        ]
    return figures


def _memory(seeds: range, iterations: int) -> list[Figure]:
    """Compare the write rules on the same weights and streams."""
    recalled: dict[str, list[float]] = {}
    for seed in seeds:
        model = train_recaller(seed, iterations)
        for slots in (24, 32):
            for policy in POLICIES:
                name = "memory_recall" if policy == "surprise_novelty" else policy
                recalled.setdefault(f"{name}_{slots}", []).append(measure_recall(model, policy, slots, seed, 200))
        shuffled = measure_recall(model, "surprise_novelty", 32, seed, 200, shuffled=True)
        recalled.setdefault("memory_shuffled", []).append(shuffled)
        progress(f"memory, seed {seed}: " + "  ".join(f"{key} {values[-1]:.3f}" for key, values in recalled.items()))
    chance = Baseline(what="chance", value=1 / VALUES)
    goals = {"memory_recall_24": 0.97, "memory_recall_32": 0.99, "memory_shuffled": chance.value + 0.03}
    return [
        _figure(
            key,
            values,
            "share recalled",
            goals.get(key),
            baseline=chance,
            better="lower" if key == "memory_shuffled" else "higher",
        )
        for key, values in recalled.items()
    ]


@torch.inference_mode()
def _early_exit(mean_steps: float, repetitions: int) -> Figure:
    """Decode a batch of 32 with rows that halt independently, against all of them running every step.

    What would be ideal is counted: the block calls of the one over those of the other. Ordering active rows is part of
    what is timed. The model is the 25M preset with random weights and a head that halts after `mean_steps`.
    """
    torch.manual_seed(0)
    config = PRESETS["25m"].model_copy(update={"train_ponder_steps": _MAX_STEPS})
    adaptive = TinyTitan(config).eval()
    adaptive.halting.linear.weight.normal_(std=0.05)
    length = _BEFORE + _TOKENS * (repetitions + 1)
    tokens = torch.randint(16, config.vocab_size, (_BATCH, length))
    set_mean_steps(adaptive, tokens[:, :16], mean_steps)
    fixed = copy.deepcopy(adaptive)
    fixed.halting.linear.bias.fill_(-100.0)
    calls = {"adaptive": 0, "fixed": 0}

    def decoding(name: str, model: TinyTitan) -> Callable[[], None]:
        state: State = model(tokens[:, :_BEFORE])[1]

        def some_tokens() -> None:
            for place in range(state.position, state.position + _TOKENS):
                calls[name] += int(model.read(tokens[:, place : place + 1], state).steps.sum()) * config.n_layers

        return some_tokens

    seconds = interleave({"adaptive": decoding("adaptive", adaptive), "fixed": decoding("fixed", fixed)}, repetitions)
    ideal = calls["fixed"] / calls["adaptive"]
    shares = [slow / fast / ideal for slow, fast in zip(seconds["fixed"], seconds["adaptive"], strict=True)]
    return Figure(
        key="early_exit_share" if mean_steps == 2 else f"early_exit_share_{mean_steps:.0f}",
        value=statistics.median(shares),
        unit="of the ideal speed-up",
        better="higher",
        goal=0.75 if mean_steps == 2 else None,
        baseline=Baseline(what="ideal by counted block calls, x", value=ideal),
        low=min(shares),
        high=max(shares),
        raw=seconds,
    )
