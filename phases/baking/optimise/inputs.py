"""What a model is run on while it is optimised: given arrays, or fresh random ones of the shapes that it declares.

Calibration and evaluation never share an input. Random ids stay inside the table that they index; masks let
all through.
Quality on random inputs is a proxy: give real ones (`.npz`, one array per input, rows first) where there are some.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from phases.baking.optimise.session import Feeds
from phases.errors import ConfigError

_SIZES = {0: 1}  # a symbolic first axis is the batch
_LENGTH = 128  # any other symbolic axis
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Inputs:
    """Disjoint feeds for calibrating, for comparing outputs, and one of the latter for timing."""

    calibration: list[Feeds]
    evaluation: list[Feeds]


def random_inputs(
    session: ort.InferenceSession, model: onnx.ModelProto, sizes: Mapping[str, int], count: int, seed: int
) -> Inputs:
    """Draw `count` feeds for each purpose. `sizes` are those of symbolic axes by name."""
    rng = np.random.default_rng(seed)
    tables = _tables(model)

    def draw() -> Feeds:
        return {each.name: _drawn(rng, each, sizes, tables) for each in session.get_inputs()}

    return Inputs([draw() for _ in range(count)], [draw() for _ in range(count)])


def given_inputs(session: ort.InferenceSession, file: Path, batch: int = 1) -> Inputs:
    """Read feeds from an `.npz` file: even rows calibrate, odd ones evaluate.

    Raises `ConfigError` where an input is missing, or there are too few rows.
    """
    try:
        arrays = dict(np.load(file, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ConfigError.of("inputs", str(file), f"no readable .npz ({error})", "write it with numpy.savez") from error
    names = [each.name for each in session.get_inputs()]
    if missing := [name for name in names if name not in arrays]:
        raise ConfigError.of("inputs", str(file), f"lacks {missing}", f"give an array for each of {names}")
    rows = min(len(arrays[name]) for name in names)
    if rows < 4 * batch:
        raise ConfigError.of("inputs", str(file), f"has {rows} rows", f"give at least {4 * batch}")
    parts = [[{n: arrays[n][row : row + batch] for n in names} for row in range(0, rows - batch + 1, batch)]]
    return Inputs(parts[0][::2], parts[0][1::2])


def _drawn(
    rng: np.random.Generator, declared: ort.NodeArg, sizes: Mapping[str, int], tables: dict[str, int]
) -> npt.NDArray[Any]:
    shape = [
        axis if isinstance(axis, int) else sizes.get(str(axis), _SIZES.get(place, _LENGTH))
        for place, axis in enumerate(declared.shape)
    ]
    kind = _TYPES.get(declared.type)
    if kind is None:
        raise ConfigError.of("model", declared.name, f"takes {declared.type}", "give --inputs FILE.npz")
    if kind in (np.float32, np.float64):
        return rng.standard_normal(shape).astype(kind)
    if kind is np.bool_ or "mask" in declared.name:
        return np.ones(shape, kind)
    return rng.integers(0, tables.get(declared.name, 1), shape).astype(kind)


def _tables(model: onnx.ModelProto) -> dict[str, int]:
    """Return input -> rows of the table that it indexes, for inputs that a Gather reads directly."""
    rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    gathers = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] in rows]
    return {node.input[1]: rows[node.input[0]] for node in gathers}
