"""The part of a TinyTitan's long-term memory that an exported graph leaves out: writing, once per segment.

It is the model's own code over the weights as stored, so that what is remembered is the same.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor, nn

from phases.bitnet.activations import ActivationQuantiser, quantiser_for
from phases.bitnet.packed import Architecture, PackedModel
from phases.cognate.memory import LongTermMemory, MemoryState

ABSENT = 1e30  # the fade of a slot that is not there: not infinity, which times 0 is no number
Floats = npt.NDArray[np.floating[Any]]
MEMORY = "memory"
_PREFIX = "memory."
_GATES = ("address_gate.weight", "address_gate.bias", "decay_gate.weight", "decay_gate.bias")
_VECTORS = ("norm.weight", "k_conv", "v_conv", *_GATES)
_MATRICES = ("k.weight", "v.weight")
_ROW_BITS = 8  # of a quantised head, or 4: they have the same blocks


def writer_tensors(model: PackedModel) -> dict[str, Tensor]:
    """Return what a `MemoryWriter` needs, matrices as codes and scales where they are quantised."""
    tensors = {name: model.vectors[_PREFIX + name] for name in _VECTORS}
    for name in _MATRICES:
        matrix = model.matrices[_PREFIX + name]
        if isinstance(matrix, Tensor):
            tensors[name] = matrix
        else:
            tensors |= {f"{name}.codes": matrix.codes, f"{name}.scale": matrix.row_scale.half().contiguous()}
            tensors[f"{name}.bits"] = torch.tensor(matrix.bits)
    return tensors


def writer_metadata(model: PackedModel) -> dict[str, str]:
    """Return the same as an entry of a file's metadata; a model without a memory has none."""
    if model.architecture.titan is None:
        return {}
    return {MEMORY: base64.b64encode(save(writer_tensors(model))).decode()}


class MemoryWriter:
    """Writes the memory of streams, B at a time; that of exact files in fp64."""

    def __init__(self, architecture: Architecture, tensors: Mapping[str, Tensor], *, exact: bool = False) -> None:
        config = architecture.titan
        assert config is not None
        name, width = architecture.activations, config.d_model
        self._activations = quantiser_for(name, width, _ROW_BITS) if architecture.quantised_head else None
        self._dtype = torch.float64 if exact else torch.float32
        own = {part: tensors[part].to(self._dtype) for part in (*_VECTORS, *_MATRICES) if part in tensors}
        with torch.device("meta"):  # what reading takes stays there: the graph has it
            self._memory = LongTermMemory(width, config.memory).eval()
        self._memory.load_state_dict(own, strict=False, assign=True)
        for matrix in (m for m in _MATRICES if m not in own):
            codes, scale = tensors[f"{matrix}.codes"], tensors[f"{matrix}.scale"].to(self._dtype)
            activations = quantiser_for(name, width, int(tensors[f"{matrix}.bits"]))
            self._memory.set_submodule(matrix.removesuffix(".weight"), _Projection(codes, scale, activations))

    def empty(self, batch: int = 1) -> MemoryState:
        """Return the memory of `batch` streams that holds nothing."""
        return self._memory.empty(batch, "cpu", self._dtype)

    @torch.no_grad()
    def write(self, state: MemoryState, outputs: Floats, surprise: npt.NDArray[np.float32]) -> MemoryState:
        """Return the memory after a segment: `outputs` (B, T, D), not yet quantised, and `surprise` (B, T), nats."""
        hidden = torch.from_numpy(outputs.copy())
        if self._activations is not None:
            hidden = self._activations.values(hidden)
        return self._memory.write(state, hidden, torch.from_numpy(surprise.astype(outputs.dtype)))

    def slots(self, state: MemoryState) -> dict[str, Floats]:
        """Return the memory as inputs of a graph, by name: `slot_keys`, `slot_values` (B, M, D), `slot_fade` (B, M).

        There are at least as many slots as a read takes; those that are not there are marked by their fade.
        """
        missing = max(0, self._memory.config.top_k - state.keys.shape[1])

        def padded(x: Tensor, fill: float) -> Floats:
            width = [(0, 0), (0, missing)] + [(0, 0)] * (x.dim() - 2)
            return np.ascontiguousarray(np.pad(x.numpy(), width, constant_values=fill))

        fade = (state.rate * state.age).masked_fill(~state.valid, ABSENT)
        keys, values = padded(state.keys, 0), padded(state.values, 0)
        return {"slot_keys": keys, "slot_values": values, "slot_fade": padded(fade, ABSENT)}


class _Projection(nn.Module):
    """A quantised linear layer that holds its codes, for it is used once in a segment."""

    def __init__(self, codes: Tensor, scale: Tensor, activations: ActivationQuantiser) -> None:
        super().__init__()
        self._codes, self._scale, self._activations = codes, scale, activations

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        return nn.functional.linear(self._activations.values(x), self._codes * self._scale)


def surprise_of(ids: npt.NDArray[np.int64], logits: Floats, before: Floats | None) -> npt.NDArray[np.float32]:
    """Return the nats (B, T) of `ids` (B, T), each under the logits before it; `logits` (B, T, V) are behind each.

    `before` (B, V) are the logits of the first, which has no nats where that is None.
    """
    nats = np.zeros(ids.shape, np.float32)
    if before is not None:
        nats[:, :1] = _nats(ids[:, :1], before[:, None])
    if ids.shape[1] > 1:
        nats[:, 1:] = _nats(ids[:, 1:], logits[:, :-1])
    return nats


def _nats(ids: npt.NDArray[np.int64], logits: Floats) -> Floats:
    logs = torch.log_softmax(torch.from_numpy(logits).float(), -1)  # as a loss is computed
    nats: Floats = -logs.gather(-1, torch.from_numpy(ids).unsqueeze(-1)).squeeze(-1).numpy()
    return nats
