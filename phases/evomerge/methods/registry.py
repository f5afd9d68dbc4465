"""The merge methods by mergekit's names, with their parameters, defaults and ranges.

A method's function takes the inputs, then the base unless that is unused, then the mask key if the method is random,
then its parameters by name; those per model as sequences in the order of the inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from phases.evomerge.methods.elementwise import arcee_fusion, nearswap
from phases.evomerge.methods.linear import linear, passthrough
from phases.evomerge.methods.model_stock import model_stock
from phases.evomerge.methods.ram import ram, ramplus_tl
from phases.evomerge.methods.sce import sce
from phases.evomerge.methods.spherical import karcher, multislerp, nuslerp, slerp
from phases.evomerge.methods.task_vectors import breadcrumbs, dare, della, task_arithmetic, ties


@dataclass(frozen=True)
class Parameter:
    """A setting of a method: its type, its default (None: it must be given), its range, and what it means."""

    name: str
    kind: Literal["float", "int", "bool"]
    default: float | int | bool | None
    meaning: str
    per_model: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class MergeMethod:
    """A way to merge the tensors of one name; `least` and `most` count the inputs without the base.

    `elementwise`: each element of the result depends on the same element of the inputs only, so that a large tensor may
    be merged in pieces. `guarded`: its function takes the guard and checks its result. `ignored` are parameters that
    mergekit takes and that change no number.
    """

    name: str
    function: Callable[..., Tensor]
    parameters: tuple[Parameter, ...]
    base: Literal["required", "optional", "unused"]
    least: int = 1
    most: int | None = None
    random: bool = False
    elementwise: bool = False
    guarded: bool = False
    ignored: tuple[str, ...] = ()


def _weight(meaning: str = "share of the model") -> Parameter:
    return Parameter("weight", "float", None, meaning, per_model=True)


_MASK = ("int8_mask",)
_DENSITY = Parameter("density", "float", 1.0, "share of each delta that is kept", per_model=True, low=0.0, high=1.0)
_LAMBDA = Parameter("lambda_", "float", 1.0, "factor on the merged delta")


def _normalize(default: bool) -> Parameter:
    return Parameter("normalize", "bool", default, "divide by the sum of the weights")


def _rescale(default: bool) -> Parameter:
    return Parameter("rescale", "bool", default, "scale what is kept of a delta to the l1 norm of the whole")


def _sparse(
    name: str,
    function: Callable[..., Tensor],
    extra: tuple[Parameter, ...] = (),
    *,
    normalize: bool = False,
    rescale: bool,
    random: bool = False,
) -> MergeMethod:
    shared = (_weight(), _DENSITY, *extra, _normalize(normalize), _rescale(rescale), _LAMBDA)
    return MergeMethod(name, function, shared, base="required", random=random, guarded=True, ignored=_MASK)


_GAMMA = Parameter("gamma", "float", 0.01, "share of largest elements dropped", per_model=True, low=0.0, high=1.0)
_EPSILON = Parameter("epsilon", "float", 0.15, "half the range of keep chances", per_model=True, low=0.0, high=0.5)
_T = Parameter("t", "float", None, "0: the base, 1: the other model")
_SCALE = Parameter("scale", "float", 1.0, "factor on the copy", per_model=True)
_NEAR = Parameter("t", "float", None, "distance within which the other model is taken over", low=0.0)
_CHANGED = Parameter("epsilon", "float", 1e-5, "least change that counts", low=0.0)
_SELECT = Parameter("select_topk", "float", 1.0, "share of elements, by variance, that are merged", low=0.0, high=1.0)

_ALL = (
    MergeMethod("linear", linear, (_weight(), _normalize(True)), base="unused", elementwise=True),
    MergeMethod("slerp", slerp, (_T,), base="required", most=1),
    MergeMethod(
        "nuslerp",
        nuslerp,
        (
            _weight(),
            Parameter("nuslerp_flatten", "bool", True, "one arc between whole tensors"),
            Parameter("nuslerp_row_wise", "bool", False, "arcs along the first dimension, else along the last"),
        ),
        base="optional",
        least=2,
        most=2,
    ),
    MergeMethod(
        "multislerp",
        multislerp,
        (
            _weight(),
            Parameter("normalize_weights", "bool", True, "divide the weights by their sum"),
            Parameter("eps", "float", 1e-8, "length below which a tensor has no direction", low=0.0),
        ),
        base="optional",
    ),
    MergeMethod(
        "karcher",
        karcher,
        (
            Parameter("max_iter", "int", 10, "most steps", low=0),
            Parameter("tol", "float", 1e-5, "radians: a shorter step is the last", low=0.0),
        ),
        base="unused",
    ),
    MergeMethod(
        "task_arithmetic",
        task_arithmetic,
        (_weight("factor on the model's delta"), _normalize(False), _LAMBDA),
        base="required",
        elementwise=True,
        guarded=True,
        ignored=(*_MASK, "density", "rescale"),
    ),
    _sparse("ties", ties, normalize=True, rescale=False),
    _sparse("dare_ties", partial(dare, elect=True), rescale=True, random=True),
    _sparse("dare_linear", dare, rescale=True, random=True),
    _sparse("breadcrumbs", breadcrumbs, (_GAMMA,), rescale=False),
    _sparse("breadcrumbs_ties", partial(breadcrumbs, elect=True), (_GAMMA,), rescale=False),
    _sparse("della", partial(della, elect=True), (_EPSILON,), normalize=True, rescale=True, random=True),
    _sparse("della_linear", della, (_EPSILON,), rescale=True, random=True),
    MergeMethod(
        "model_stock",
        model_stock,
        (Parameter("filter_wise", "bool", False, "a share for each vector along the last dimension"),),
        base="required",
        least=2,
    ),
    MergeMethod("arcee_fusion", arcee_fusion, (), base="required", most=1),
    MergeMethod("nearswap", nearswap, (_NEAR,), base="required", most=1, elementwise=True),
    MergeMethod("ram", ram, (_CHANGED,), base="required", elementwise=True),
    MergeMethod(
        "ramplus_tl",
        ramplus_tl,
        (
            Parameter("r", "float", 0.1, "enlargement per shared change"),
            Parameter("alpha", "float", 0.2, "largest ratio of shared to own changes that counts", low=0.0),
            _CHANGED,
        ),
        base="required",
    ),
    MergeMethod("sce", sce, (_SELECT,), base="required", guarded=True, ignored=_MASK),
    MergeMethod("passthrough", passthrough, (_SCALE,), base="unused", most=1, elementwise=True),
)

METHODS: Mapping[str, MergeMethod] = MappingProxyType({method.name: method for method in _ALL})
