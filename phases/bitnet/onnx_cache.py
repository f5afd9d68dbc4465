"""Keys and values of a pass as an exported file takes them: in buffers that are bound once, and grow by 64 places.

Shapes: L layers, G key and value heads, W places of the cache, K head dimension, P the padded one.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from phases.bitnet.onnx_binding import Floats, bind, bind_output, rotation
from phases.bitnet.onnx_heads import padded_width
from phases.bitnet.packed import Architecture

PLACES = 64  # that a cache has at first, and grows by
_TYPES = {"tensor(int8)": np.int8, "tensor(float)": np.float32, "tensor(double)": np.float64}


class Cache:
    """Keys and values (L, 2, G, W, P), or (L, 2, G, W, K) in an exact file, whose graph does not append to them."""

    def __init__(self, architecture: Architecture, sessions: list[ort.InferenceSession]) -> None:
        kinds = {value.name: value.type for value in sessions[0].get_inputs()}
        self._appended = "last_place" in kinds
        self.bindings = [session.io_binding() for session in sessions]
        a = architecture
        width = padded_width(a.head_dim) if self._appended else a.head_dim
        self.values: npt.NDArray[Any] = np.zeros((a.n_layers, 2, a.n_kv_heads, 0, width), _TYPES[kinds["key_0"]])
        self.grow(PLACES)

    @property
    def places(self) -> int:
        """W."""
        places: int = self.values.shape[-2]
        return places

    def grow(self, places: int) -> None:
        """Have room for so many places, which are more than there are."""
        shape = list(self.values.shape)
        shape[-2] = -(-places // PLACES) * PLACES
        values = np.zeros(shape, self.values.dtype)
        values[..., : self.places, :] = self.values
        self.values = values
        for binding in self.bindings:
            for layer, of_layer in enumerate(values):
                for name, part in zip(("key", "value"), of_layer, strict=True):
                    bind(binding, f"{name}_{layer}", part[None])
                    if self._appended:
                        bind_output(binding, f"present_{name}_{layer}", part[None])


class Turns:
    """How places are rotated: cosines and sines (W, P / 2) of positions from `first` on, times K^-1/4.

    Queries and keys are both turned by these, so scores come out scaled by 1 / sqrt(K), as attention has them.
    """

    def __init__(self, architecture: Architecture, bindings: list[ort.IOBinding]) -> None:
        self._architecture, self._bindings = architecture, bindings
        self._values = list[Floats]()

    def set(self, places: int, first: int = 0) -> None:
        """Be those of so many places."""
        a = self._architecture
        found = rotation(np.arange(first, first + places), a.head_dim, a.rope_theta)
        self._values = [np.zeros((places, padded_width(a.head_dim) // 2), np.float32) for _ in found]
        for name, turns, values in zip(("cos", "sin"), self._values, found, strict=True):
            turns[:, : a.head_dim // 2] = values * a.head_dim**-0.25
            for binding in self._bindings:
                bind(binding, name, turns)
