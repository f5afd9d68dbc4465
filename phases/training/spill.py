"""Training in less memory with the same bits: what a backward pass needs waits on disk and not in memory.

Each tensor that autograd saves goes into a file of its own that is mapped and already deleted: the kernel writes its
pages out where memory is short and reads them back, and nothing is left behind however the process ends. Its strides
and its place within a cache line stay as they were, so that kernels sum in the same order. Slower, and only worth it
where memory did not suffice.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_LEAST_BYTES = 4096  # smaller ones stay where they are: a file takes a page
_LINE = 64  # bytes that kernels align to


@contextmanager
def spilled(folder: str | None = None) -> Iterator[None]:
    """Keep what autograd saves in `folder` (default: where temporary files go). Parameters stay in memory."""

    def pack(tensor: Tensor) -> Tensor:
        small = tensor.numel() * tensor.element_size() < _LEAST_BYTES
        return tensor if small or tensor.is_leaf or tensor.device.type != "cpu" else _mapped(tensor, folder)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _mapped(tensor: Tensor, folder: str | None) -> Tensor:
    """Return a copy whose memory is a file."""
    size = tensor.element_size()
    before = min(tensor.data_ptr() % _LINE // size, int(tensor.storage_offset()))
    lengths, strides = tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride()))
    extent = before + 1 + sum((n - 1) * stride for n, stride in zip(lengths, strides, strict=True))
    source = tensor.detach().as_strided((extent,), (1,), tensor.storage_offset() - before)
    descriptor, path = tempfile.mkstemp(prefix="spilled-", dir=folder)
    try:
        os.truncate(descriptor, extent * size)
        copy = torch.from_file(path, shared=True, size=extent, dtype=tensor.dtype)
    finally:
        os.close(descriptor)
        os.unlink(path)
    return copy.copy_(source).as_strided(lengths, strides, before)
