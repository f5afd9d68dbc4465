"""The documented table of sizes and speeds, earned again: four architectures in full size, with random weights.

Sizes are bytes on disk, speeds CPU time of a run on one thread against the fastest full precision there is: the
runtime's four levels, and the highest without the passes that do harm. What quality is kept cannot be told without
real weights; for MiniLM's see `optimize.py`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import minilm
from benchmarks.harness import Baseline, Figure, progress, ratio_figure
from benchmarks.zoo import ViT, Write, resnet, small_cnn, write_module
from phases.baking.optimise.ablation import ablate
from phases.baking.optimise.session import Feeds, call
from phases.baking.optimise.transforms import TRANSFORMS
from phases.timing import interleaved

_SIZE, _SPEED = 3.85, 2.8  # goals
_CALIBRATED = 4  # feeds


@dataclass(frozen=True)
class Row:
    """An architecture, how it is quantised, and what was claimed of it: times smaller and times as fast."""

    name: str
    write: Write
    transform: str
    smaller: float
    faster: float | None


def _bert(path: Path) -> Feeds:
    minilm.write(path, minilm.weights(None, minilm.BASE), minilm.BASE)
    return minilm.feeds(None, ["any"], 128)[0]


_IMAGE = (1, 3, 224, 224)
_TABLE = (
    Row("ResNet-50", partial(write_module, partial(resnet, (3, 4, 6, 3)), _IMAGE), "int8_qdq", 97.8 / 24.5, 3.2),
    Row("BERT-base", _bert, "int8_static", 438 / 109, 2.8),
    Row("ViT-B", partial(write_module, partial(ViT, 768, 12, 16, 224), _IMAGE), "int8_static", 344 / 86, 3.1),
    Row("CNN", partial(write_module, partial(small_cnn, 64), (1, 3, 64, 64)), "int8_qdq", 156 / 39, None),
)


def figures(quick: bool) -> list[Figure]:
    """Measure each row; quick: the small CNN alone."""
    return [figure for row in (_TABLE[-1:] if quick else _TABLE) for figure in _measured(row, 5 if quick else 9)]


def _measured(row: Row, rounds: int) -> list[Figure]:
    with TemporaryDirectory() as folder:
        full, small = Path(folder) / "full.onnx", Path(folder) / "small.onnx"
        progress(f"{row.name}: writing and quantising")
        feed = row.write(full)
        TRANSFORMS[row.transform](full, small, [_fresh(feed, seed) for seed in range(_CALIBRATED)])
        settings = {file: ablate(file, feed, rounds).settings for file in (full, small)}
        calls = {name: call(file, settings[file], feed) for name, file in (("fp32", full), ("int8", small))}
        samples = interleaved(calls, 2 * rounds)
        sizes = [file.stat().st_size for file in (full, small)]
    speed = ratio_figure(f"speed {row.name}", samples, "int8", "fp32", goal=_SPEED, what="fastest fp32, runs per CPU s")
    told = "no claim" if row.faster is None else f"claimed {row.faster:.1f}"
    size = Figure(
        key=f"size {row.name}",
        value=sizes[0] / sizes[1],
        unit=f"x smaller; claimed {row.smaller:.2f}",
        better="higher",
        goal=_SIZE,
        baseline=Baseline(what="fp32, 10^6 bytes", value=sizes[0] / 1e6),
    )
    return [size, speed.model_copy(update={"unit": f"x; {told}; {row.transform}"})]


def _fresh(feed: Feeds, seed: int) -> Feeds:
    """Return a feed like `feed` with other numbers: images drawn, ids in another order, masks as they are."""
    rng = np.random.default_rng(seed)
    return {name: _other(rng, value) if "mask" not in name else value for name, value in feed.items()}


def _other(rng: np.random.Generator, value: np.ndarray) -> np.ndarray:
    if value.dtype == np.float32:
        return rng.standard_normal(value.shape).astype(np.float32)
    return rng.permuted(value, axis=-1)
