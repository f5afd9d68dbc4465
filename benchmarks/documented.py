"""The documented table of sizes and speeds, earned again: four architectures in full size, with random weights.

Sizes are bytes on disk, speeds CPU time of a run on one thread against the fastest full precision there is: without
the runtime's passes, with all, and without those that do harm. Which do is found on a shallow model of such layers.
What quality is kept cannot be told without real weights; for MiniLM's see `optimize.py`.
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
from phases.baking.optimise.session import Feeds, SessionSettings, call
from phases.baking.optimise.transforms import TRANSFORMS
from phases.timing import interleaved

_SIZE, _SPEED = 3.85, 2.8  # goals
_CALIBRATED = 4  # feeds


@dataclass(frozen=True)
class Row:
    """An architecture, how it is quantised, and what was claimed of it: times smaller and times as fast."""

    name: str
    write: Write
    shallow: Write
    transform: str
    smaller: float
    faster: float | None


def _bert(shape: minilm.Shape, path: Path) -> Feeds:
    minilm.write(path, minilm.weights(None, shape), shape)
    return minilm.feeds(None, ["any"], 128)[0]


def _resnet(depths: tuple[int, ...], path: Path) -> Feeds:
    return write_module(partial(resnet, depths), (1, 3, 224, 224), path)


def _vit(layers: int, path: Path) -> Feeds:
    return write_module(partial(ViT, 768, layers, 16, 224), (1, 3, 224, 224), path)


def _cnn(path: Path) -> Feeds:
    return write_module(partial(small_cnn, 64), (1, 3, 64, 64), path)


_BASE, _ONE = minilm.BASE, minilm.Shape(minilm.BASE.width, 1)
_TABLE = (
    Row("ResNet-50", partial(_resnet, (3, 4, 6, 3)), partial(_resnet, (1, 1, 1, 1)), "int8_qdq", 97.8 / 24.5, 3.2),
    Row("BERT-base", partial(_bert, _BASE), partial(_bert, _ONE), "int8_static", 438 / 109, 2.8),
    Row("ViT-B", partial(_vit, 12), partial(_vit, 1), "int8_static", 344 / 86, 3.1),
    Row("CNN", _cnn, _cnn, "int8_qdq", 156 / 39, None),
)


def figures(quick: bool) -> list[Figure]:
    """Measure each row; quick: the small CNN alone."""
    return [figure for row in (_TABLE[-1:] if quick else _TABLE) for figure in _measured(row, 5 if quick else 9)]


def _measured(row: Row, rounds: int) -> list[Figure]:
    with TemporaryDirectory() as name:
        progress(f"{row.name}: what the runtime does to its layers")
        shallow = _files(Path(name), row.shallow, row.transform)
        found = {kind: ablate(file, shallow.feed, rounds).settings for kind, file in shallow.files.items()}
        progress(f"{row.name}: in full size")
        full = _files(Path(name), row.write, row.transform)
        tried = {"ablated": found, "all": dict.fromkeys(found, SessionSettings())}
        tried["off"] = dict.fromkeys(found, SessionSettings(level="off"))
        calls = {
            f"{kind} {way}": call(file, settings[kind], full.feed)
            for kind, file in full.files.items()
            for way, settings in tried.items()
        }
        samples = interleaved(calls, 2 * rounds)
        sizes = [file.stat().st_size for file in full.files.values()]
    fp32, int8 = (min((n for n in samples if kind in n), key=lambda n: np.median(samples[n])) for kind in full.files)
    speed = ratio_figure(f"speed {row.name}", samples, int8, fp32, goal=_SPEED, what="fastest fp32, runs per CPU s")
    told = "no claim" if row.faster is None else f"claimed {row.faster:.1f}"
    size = Figure(
        key=f"size {row.name}",
        value=sizes[0] / sizes[1],
        unit=f"x smaller; claimed {row.smaller:.2f}",
        better="higher",
        goal=_SIZE,
        baseline=Baseline(what="fp32, 10^6 bytes", value=sizes[0] / 1e6),
    )
    return [size, speed.model_copy(update={"unit": f"x; {told}; {row.transform}, {int8} against {fp32}"})]


@dataclass(frozen=True)
class _Pair:
    feed: Feeds
    files: dict[str, Path]  # fp32 and int8


def _files(folder: Path, write: Write, transform: str) -> _Pair:
    full, small = folder / "full.onnx", folder / "small.onnx"
    feed = write(full)
    TRANSFORMS[transform](full, small, [_fresh(feed, seed) for seed in range(_CALIBRATED)])
    return _Pair(feed, {"fp32": full, "int8": small})


def _fresh(feed: Feeds, seed: int) -> Feeds:
    """Return a feed like `feed` with other numbers: images drawn, ids in another order, masks as they are."""
    rng = np.random.default_rng(seed)
    return {name: _other(rng, value) if "mask" not in name else value for name, value in feed.items()}


def _other(rng: np.random.Generator, value: np.ndarray) -> np.ndarray:
    if value.dtype == np.float32:
        return rng.standard_normal(value.shape).astype(np.float32)
    return rng.permuted(value, axis=-1)
