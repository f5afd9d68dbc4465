"""A cache in int8: how far apart the codes of each channel of keys and values are.

Behind a long text attention reads more than a narrow layer's weights, from memory and not from the processor's cache;
in int8 it reads a quarter. The steps are fixed when the file is written, by what the model itself makes of random
tokens, so no text is needed: on text its keys and values are up to twice as large, and steps of up to four times that
cost less than 0.001 bits per byte. A value beyond all codes becomes the outermost.

Shapes: L layers, G key and value heads, P width of a padded head.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from phases.bitnet.activations import MOST
from phases.bitnet.onnx_binding import Floats
from phases.bitnet.onnx_export import to_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import PackedModel

_MARGIN = 3.0  # of the outermost code over what random tokens reach
_TEXTS, _LENGTH = 8, 128


def cache_steps(model: PackedModel) -> Floats | None:
    """Return the steps (L, 2, G, P) of a quantised model; one in full precision keeps its cache in floats."""
    if all(isinstance(matrix, Tensor) for matrix in model.matrices.values()):
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(to_onnx(model).SerializeToString())
        opened = OnnxModel(path)
        generator, found = np.random.default_rng(0), list[Floats]()
        for _ in range(_TEXTS):
            stream = opened.stream()
            stream.read(generator.integers(0, model.architecture.vocab_size, _LENGTH).tolist())
            found += [np.abs(cache.values).max(-2) for cache in stream.caches]
    largest = np.maximum.reduce(found)
    # Rotation moves what a channel has into the one half a head away.
    largest = np.maximum(largest, np.roll(largest, largest.shape[-1] // 2, -1))
    steps: Floats = (_MARGIN / MOST * np.where(largest > 0, largest, 1)).astype(np.float32)
    return steps
