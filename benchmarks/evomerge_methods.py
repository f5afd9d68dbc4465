"""Merging in memory: our methods against mergekit's on the same state dicts, in one process, on one thread.

Three models of the shapes of the 25M preset and their base, filled with random numbers: what is timed does not depend
on what they have learned. Masks of the random methods differ, everything else gives the same numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Figure, interleave, progress, ratio_figure
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.errors import ForgeError
from phases.evomerge.methods import METHODS, MaskKey, merge

StateDict = Mapping[str, Tensor]
_CASES: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("ties", 50.0, {"weight": [0.5, 0.3, 0.2], "density": 0.5}),
    ("dare_ties", 15.0, {"weight": [0.5, 0.3, 0.2], "density": 0.5}),
    ("sce", 20.0, {"select_topk": 0.5}),
    ("linear", 1.0, {"weight": [0.5, 0.3, 0.2]}),
)


def method_figures(quick: bool) -> list[Figure]:
    """Return how many times faster than mergekit each method is. Raises `ForgeError` where mergekit is missing."""
    torch.manual_seed(0)
    base = {name: value.detach() for name, value in TinyTitan(PRESETS["25m"]).state_dict().items()}
    models = [{name: value + 0.01 * torch.randn_like(value) for name, value in base.items()} for _ in range(3)]
    figures = []
    for method, goal, parameters in _CASES:
        progress(f"{method}: three models of 25M")
        candidates = {
            "ours": _ours(method, base, models, parameters),
            "mergekit": _theirs(method, base, models, parameters),
        }
        seconds = interleave(candidates, _repetitions(method, quick))
        what = "mergekit, merges per CPU s"
        figures.append(ratio_figure(f"{method}_speedup", seconds, "ours", "mergekit", goal=goal, what=what))
    return figures


def _ours(
    method: str, base: StateDict, models: Sequence[StateDict], parameters: Mapping[str, Any]
) -> Callable[[], StateDict]:
    """Return a call that merges every tensor of the models, with all checks."""

    def call() -> StateDict:
        return {
            name: merge(method, [model[name] for model in models], base=value, key=MaskKey(0, name), **parameters)
            for name, value in base.items()
        }

    return call


def _theirs(
    method: str, base: StateDict, models: Sequence[StateDict], parameters: Mapping[str, Any]
) -> Callable[[], StateDict]:
    """Return a call that does the same by mergekit."""
    try:
        from mergekit.merge_methods.api import merge_state_dicts
    except ImportError as error:
        raise ForgeError("the benchmark of merge methods needs mergekit; pip install 'agent-forge[dev]'") from error
    given = dict(zip("xyz", models, strict=True))
    if METHODS[method].base == "unused":
        return lambda: merge_state_dicts(given, method, parameters=parameters)
    return lambda: merge_state_dicts({"base": base, **given}, method, parameters=parameters, base="base")


def _repetitions(method: str, quick: bool) -> int:
    """Return how often each is timed: linear takes mergekit milliseconds, the others seconds."""
    return (9 if method == "linear" else 3) if quick else (31 if method == "linear" else 7)
