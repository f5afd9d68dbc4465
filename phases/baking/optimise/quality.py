"""How far a candidate's outputs are from the full-precision ones: cosines row by row, of which the smallest counts.

A task's score hides damage: one embedding at a cosine of 0.59 left a similarity benchmark's score unmoved. So the loss
of a candidate is 1 - its smallest cosine; not-finite numbers or another shape make it infinite.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from phases.baking.optimise.session import Feeds

Outputs = list[npt.NDArray[np.float32]]
_TINY = 1e-6  # rows shorter than this times the longest have no direction to speak of


@dataclass(frozen=True)
class Agreement:
    """Of a candidate's outputs with the baseline's, over all rows of all outputs."""

    mean: float
    smallest: float

    @property
    def loss(self) -> float:
        return 1 - self.smallest


def outputs(session: ort.InferenceSession, feeds: Sequence[Feeds]) -> list[Outputs]:
    """Return the outputs for each feed."""
    return [list(session.run(None, each)) for each in feeds]


def agreement(wanted: Sequence[Outputs], found: Sequence[Outputs]) -> Agreement:
    """Compare outputs feed by feed."""
    cosines = list[float]()
    for ours, theirs in zip(found, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if a.shape != b.shape or not np.isfinite(a.astype(np.float64)).all():
                return Agreement(-math.inf, -math.inf)
            cosines += _cosines(a.astype(np.float64), b.astype(np.float64))
    return Agreement(float(np.mean(cosines)), min(cosines)) if cosines else Agreement(1.0, 1.0)


def _cosines(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> list[float]:
    if a.size == 0:
        return []
    a, b = (x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1) for x in (a, b))
    lengths = np.linalg.norm(b, axis=1)
    told = lengths > _TINY * max(float(lengths.max()), 1e-30)
    a, b, lengths = a[told], b[told], lengths[told]
    products = np.linalg.norm(a, axis=1) * lengths
    return list((a * b).sum(1) / np.maximum(products, 1e-30))
