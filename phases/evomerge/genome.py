"""The genome of a merge: technique, parents, weights per layer group, and what belongs to each technique.

Tensors are put into groups by what they do, so that early layers, the halting head or the memory can come from another
mix of parents than the rest. The genes of a technique count only while that technique is the genome's.
"""

import re
from typing import Any

from phases.evomerge.config import EvoMergeConfig
from phases.evomerge.space import Choice, Gene, Real, Space, Value

WEIGHTED = frozenset({"linear", "ties", "dare", "dfs", "task_arithmetic", "breadcrumbs", "della"})
SCALED = frozenset({"ties", "dare", "task_arithmetic", "breadcrumbs", "della"})
SPARSE = frozenset({"ties", "dare", "breadcrumbs", "della"})
LAYERED = frozenset({"franken", "data_flow"})
GROUPS = ("embedding", "early", "middle", "late", "output", "halting", "memory")
KNOTS = 4
_LAYER = re.compile(r"^blocks\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to, None for one outside of the stack."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def group_of(name: str, n_layers: int) -> str:
    """Return the group of a TinyTitan tensor. Step embeddings go with the halting head: both say when to stop."""
    layer = layer_of(name)
    if layer is not None:
        return ("early", "middle", "late")[min(2, 3 * layer // n_layers)]
    part = name.split(".")[0]
    return {"embedding": "embedding", "halting": "halting", "step_embedding": "halting", "memory": "memory"}.get(
        part, "output"
    )


def depth_of(name: str, n_layers: int) -> float:
    """Return where a tensor is between input (0) and output (1), for gradients over the depth."""
    layer = layer_of(name)
    if layer is not None:
        return (layer + 1) / (n_layers + 1)
    return {"embedding": 0.0, "memory": 0.5}.get(group_of(name, n_layers), 1.0)


def merge_space(config: EvoMergeConfig, parents: tuple[str, ...], n_layers: int) -> Space:
    """Return the genes for merging the models named `parents`, all of `n_layers` layers."""
    pairs = frozenset({"slerp"})
    genes: list[Gene] = [Choice("technique", tuple(config.techniques)), Choice("settings", parents)]
    genes += [Real(f"weight.{group}.{parent}", 0.0, 1.0, WEIGHTED) for group in GROUPS for parent in parents]
    genes += [Choice("first", parents, pairs), Choice("second", parents, pairs)]
    genes += [Real(f"t.{knot}", 0.0, 1.0, pairs) for knot in range(KNOTS)]
    genes += [
        Real("lambda", 0.5, 2.0, SCALED),
        Real("density", 0.1, 1.0, SPARSE),
        Real("gamma", 0.0, 0.09, frozenset({"breadcrumbs"})),
        Real("epsilon", 0.0, 0.09, frozenset({"della"})),
        Choice("mask", tuple(range(8)), frozenset({"dare", "della"})),
        Choice("consensus", ("ties", "linear"), frozenset({"dare"})),
        Choice("features", ("variance", "fisher", "regmean"), frozenset({"dfs"})),
        Real("select", 0.1, 1.0, frozenset({"dfs"})),
        Choice("ends", parents, LAYERED),
    ]
    genes += [Choice(f"layer.{layer}", parents, LAYERED) for layer in range(n_layers)]
    if config.depth_changes:
        genes += [Choice(f"copies.{layer}", (1, 0, 2), LAYERED) for layer in range(n_layers)]
    genes += [Real(f"scale.{layer}", 0.5, 1.5, frozenset({"data_flow"})) for layer in range(n_layers)]
    return Space(tuple(genes), switch="technique")


def identity(parents: tuple[str, ...], parent: str) -> dict[str, Value]:
    """Return the genome that is exactly `parent`."""
    genome: dict[str, Value] = {"technique": "linear", "settings": parent}
    return genome | {f"weight.{group}.{name}": float(name == parent) for group in GROUPS for name in parents}


def uniform(parents: tuple[str, ...], settings: str) -> dict[str, Value]:
    """Return the genome of the plain average of all parents, with the `settings` of one."""
    return identity(parents, settings) | {f"weight.{group}.{name}": 1.0 for group in GROUPS for name in parents}


def first_genomes(config: EvoMergeConfig, parents: tuple[str, ...], best: str, n_layers: int) -> list[dict[str, Any]]:
    """Return what a search begins with: the `best` parent as it is, and each technique at its defaults.

    They are the recipes that people try first, so a search starts where a person would have ended.
    """
    others = [parent for parent in parents if parent != best]
    weights = [f"weight.{group}.{parent}" for group in GROUPS for parent in parents]
    equal: dict[str, Value] = dict.fromkeys(weights, 1.0)
    share: dict[str, Value] = dict.fromkeys(weights, 1 / len(parents))
    pair: dict[str, Value] = {"first": best, "second": others[0] if others else best}
    layers: dict[str, Value] = {f"layer.{layer}": parents[layer % len(parents)] for layer in range(n_layers)}
    scaled: dict[str, Value] = {"lambda": 1.0}
    starts: dict[str, dict[str, Value]] = {
        "linear": equal,
        "task_arithmetic": share | scaled,
        "ties": equal | scaled | {"density": 0.5},
        "dare": share | scaled | {"density": 0.5, "consensus": "linear", "mask": 0},
        "dfs": equal | {"features": "variance", "select": 1.0},
        "slerp": pair | {f"t.{knot}": 0.5 for knot in range(KNOTS)},
        "franken": layers | {"ends": best},
        "breadcrumbs": share | scaled | {"density": 0.9, "gamma": 0.01},
        "della": share | scaled | {"density": 0.5, "epsilon": 0.05, "mask": 0},
        "data_flow": layers | {"ends": best} | {f"scale.{layer}": 1.0 for layer in range(n_layers)},
    }
    copies = {f"copies.{layer}": 1 for layer in range(n_layers)} if config.depth_changes else {}
    start = [identity(parents, best)] if "linear" in config.techniques else []
    return [*start] + [
        {"technique": technique, "settings": best} | values | (copies if technique in LAYERED else {})
        for technique, values in starts.items()
        if technique in config.techniques
    ]
