"""From a genome to a model: which tensors are merged how.

Parents share one architecture and the warm-up that they were trained from, which is the base of task vectors. A
candidate's tensors are made one by one and may be views of a parent's; nothing is changed in place, because parents may
be read-only memory that many workers share.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from phases.cognate.titan import TitanConfig
from phases.errors import ConfigError
from phases.evomerge.errors import MergeError
from phases.evomerge.genome import KNOTS, LAYERED, depth_of, group_of, layer_of
from phases.evomerge.methods import MaskKey, merge
from phases.evomerge.methods.fisher import diagonal_fisher
from phases.evomerge.methods.regmean import regmean
from phases.evomerge.space import Genome

_SCALED_WEIGHTS = ("out.weight", "down.weight")  # what a block adds to the residual stream is linear in these


@dataclass(frozen=True)
class Parents:
    """The models that are merged, by name, and what was measured of them for data-driven methods."""

    base: Mapping[str, Tensor]
    models: Mapping[str, Mapping[str, Tensor]]
    configs: Mapping[str, TitanConfig]
    fishers: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    grams: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise `ConfigError` where the models cannot be merged."""
        for name, tensors in self.models.items():
            for key, tensor in self.base.items():
                if key not in tensors or tensors[key].shape != tensor.shape:
                    found = tuple(tensors[key].shape) if key in tensors else "missing"
                    problem = f"the base has {key} as {tuple(tensor.shape)}"
                    raise ConfigError.of(f"parent {name}", found, problem, "merge models of one architecture")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.models)

    @property
    def n_layers(self) -> int:
        return next(iter(self.configs.values())).n_layers


def build(genome: Genome, parents: Parents, seed: int, guard: float) -> tuple[TitanConfig, dict[str, Tensor]]:
    """Return a candidate's configuration and tensors. Raises `MergeError` where the merge is refused."""
    config = parents.configs[str(genome["settings"])]
    if genome["technique"] in LAYERED:
        tensors = dict(_layers(genome, parents))
        depth = 1 + max((layer_of(name) or 0) for name in tensors)
        if not any(layer_of(name) == 0 for name in tensors):
            raise MergeError("a candidate without layers; keep at least one")
        return config.model_copy(update={"n_layers": depth}), tensors
    return config, {name: _merged(name, genome, parents, seed, guard) for name in parents.base}


def _merged(name: str, genome: Genome, parents: Parents, seed: int, guard: float) -> Tensor:
    """Return one tensor of a genome whose technique merges tensor by tensor."""
    group = group_of(name, parents.n_layers)
    base, models = parents.base[name], parents.models
    if genome["technique"] == "slerp":
        first, second = (models[str(genome[which])][name] for which in ("first", "second"))
        knots = [float(genome[f"t.{knot}"]) for knot in range(KNOTS)]
        t = float(np.interp(depth_of(name, parents.n_layers) * (KNOTS - 1), range(KNOTS), knots))
        return merge("slerp", [second], base=first, guard=guard, t=t)
    tensors = [models[parent][name] for parent in parents.names]
    weight = [float(genome[f"weight.{group}.{parent}"]) for parent in parents.names]
    if not any(weight):
        weight = [1.0] * len(weight)  # no say at all is an equal say
    if genome["technique"] == "dfs":
        return _features(name, str(genome["features"]), tensors, weight, genome, parents, guard)
    method, parameters = _recipe(genome)
    key = MaskKey(seed + int(genome.get("mask", 0)), name)
    if method == "linear":
        return merge("linear", tensors, key=key, guard=guard, weight=weight)
    return merge(method, tensors, base=base, key=key, guard=guard, weight=weight, **parameters)


def _recipe(genome: Genome) -> tuple[str, dict[str, float]]:
    """Return the method that a technique stands for, and its parameters beside the weights."""
    technique = str(genome["technique"])
    if technique == "linear":
        return technique, {}
    parameters = {"lambda_": float(genome["lambda"])}
    if technique == "task_arithmetic":
        return technique, parameters
    density = float(genome["density"])
    parameters["density"] = density
    match technique:
        case "ties":
            return technique, parameters
        case "dare":
            return f"dare_{genome['consensus']}", parameters
        case "breadcrumbs":  # what is dropped at the top is a part of all that is dropped
            return technique, parameters | {"gamma": min(float(genome["gamma"]), 1 - density)}
        case "della":  # keep-probabilities stay inside (0, 1)
            return technique, parameters | {"epsilon": min(float(genome["epsilon"]), 0.99 * min(density, 1 - density))}
    raise MergeError(f"technique {technique}: not known; see the techniques of evomerge's configuration")


def _features(
    name: str,
    features: str,
    tensors: list[Tensor],
    weight: list[float],
    genome: Genome,
    parents: Parents,
    guard: float,
) -> Tensor:
    """Merge by which features matter: by variance (SCE), by Fisher information or by the inputs they see (RegMean).

    RegMean is for linear layers alone; what has no measured inputs falls back to Fisher.
    """
    if features == "regmean" and name in next(iter(parents.grams.values()), {}):
        return regmean(tensors, [parents.grams[parent][name] for parent in parents.names])
    if features in ("fisher", "regmean") and parents.fishers:
        return diagonal_fisher(tensors, [parents.fishers[parent][name] for parent in parents.names], weight)
    return merge("sce", tensors, base=parents.base[name], guard=guard, select_topk=float(genome["select"]))


def _layers(genome: Genome, parents: Parents) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model stacked from the parents' layers; what is not a layer comes from `ends`.

    A scale, where the genome has one, multiplies what a layer adds to the residual stream: since the stream is
    normalised wherever it is read, that is the scaled data flow of Akiba et al. 2024 (section 3.2), up to one factor.
    """
    ends = parents.models[str(genome["ends"])]
    yield from ((name, tensor) for name, tensor in ends.items() if layer_of(name) is None)
    target = 0
    for layer in range(parents.n_layers):
        source = parents.models[str(genome[f"layer.{layer}"])]
        scale = float(genome[f"scale.{layer}"]) if genome["technique"] == "data_flow" else 1.0
        for _ in range(int(genome.get(f"copies.{layer}", 1))):
            for name, tensor in source.items():
                if layer_of(name) == layer:
                    scaled = tensor * scale if scale != 1 and name.endswith(_SCALED_WEIGHTS) else tensor
                    yield name.replace(f".{layer}.", f".{target}.", 1), scaled
            target += 1


class Positions:
    """Where candidates are in task-vector space, on a fixed sample of coordinates, so that workers send little.

    A sample of 1,024 coordinates gives distances to about 3% (the standard error of a mean of squares).
    """

    def __init__(self, parents: Parents, seed: int, count: int = 1024) -> None:
        rng = np.random.default_rng(seed)
        sizes = np.array([tensor.numel() for tensor in parents.base.values()])
        flat = np.sort(rng.choice(sizes.sum(), size=min(count, int(sizes.sum())), replace=False))
        ends = np.cumsum(sizes)
        owner = np.searchsorted(ends, flat, side="right")
        names = list(parents.base)
        self._picked = {
            names[i]: torch.from_numpy(flat[owner == i] - (ends[i] - sizes[i])) for i in np.unique(owner).tolist()
        }
        self._base = parents.base
        vectors = [self._vector(tensors) for tensors in parents.models.values()]
        apart = [float((a - b).norm()) for a in vectors for b in vectors]
        self._scale = max(apart) or 1.0

    def of(self, tensors: Mapping[str, Tensor]) -> tuple[float, ...]:
        """Return a candidate's coordinates, in units of the largest distance between two parents."""
        return tuple((self._vector(tensors) / self._scale).tolist())

    def _vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the sampled entries of the task vector; zeros where a candidate lacks a layer."""
        return torch.cat(
            [
                tensors[name].flatten()[where].float() - self._base[name].flatten()[where].float()
                if name in tensors
                else torch.zeros(len(where))
                for name, where in self._picked.items()
            ]
        )
