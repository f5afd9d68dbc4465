"""T1, T2, T6 on weights: what the stored bytes of a model say about the bits that it claims.

Claimed bits are compared with the number of distinct values: b bits give at most 2^b of them per tensor, or per row
where each row has its scale. Weights that keep to that number but are stored as floats are fake quantisation: the size
claim is false. Reads safetensors and ONNX files tensor by tensor; at most a million values of a tensor are counted.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from phases.baking.validation.finding import Finding

_SAMPLE = 1_000_000
_ROWS = 64
_OFF_GRID = 0.1  # of a step; half precision rounds by 0.06
_SMALL = 1024  # values; below, a tensor is no matrix whose format matters
_KEPT = ("embed", "norm", "head", "bias", "scale", "zero", "wte", "wpe", "ln_")


@dataclass(frozen=True)
class Stored:
    """A tensor of a file."""

    file: Path
    name: str
    tensor: torch.Tensor

    @property
    def bytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    @property
    def is_matrix(self) -> bool:
        return self.tensor.ndim >= 2 and self.tensor.numel() >= _SMALL


def stored_tensors(path: Path) -> Iterator[Stored]:
    """Yield the tensors of a safetensors or ONNX file, or of all such files in a folder."""
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.suffix in {".safetensors", ".onnx"}:
                yield from stored_tensors(file)
    elif path.suffix == ".onnx":
        yield from _onnx_tensors(path)
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield Stored(path, name, file.get_tensor(name))


def _onnx_tensors(path: Path) -> Iterator[Stored]:
    import onnx
    from onnx import numpy_helper

    for initializer in onnx.load(str(path)).graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.dtype.kind in "biufe" and values.dtype.itemsize <= 8:
            yield Stored(path, initializer.name, torch.from_numpy(values.copy()))


def damage(path: Path) -> Finding | None:
    """Return a finding where a weights file cannot be read at all."""
    try:
        for _ in stored_tensors(path):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        return Finding(test="T1", path=str(path), where=path.name, why=f"cannot be read: {error}")
    return None


def digest(tensor: torch.Tensor) -> str:
    """Return a hash of a tensor's type, shape and bytes; its name does not matter."""
    content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + content).hexdigest()


def levels(tensor: torch.Tensor, most: int) -> int:
    """Return how many distinct values a tensor uses, or each of its rows where that explains them better.

    A row may have a scale of its own, so up to `most` values per row are as good as in the whole tensor. A row too
    short to show that by counting shows it by its values lying on a grid of `most` steps.
    """
    whole = int(torch.unique(tensor.flatten()[:_SAMPLE]).numel())
    if whole <= most or tensor.ndim < 2:
        return whole
    rows = tensor.reshape(tensor.shape[0], -1)[:_ROWS]
    found = [_row_levels(row, most) for row in rows]
    return whole if None in found else max(count for count in found if count is not None)


def _row_levels(row: torch.Tensor, most: int) -> int | None:
    """Return the levels of a row, None where it has more than `most`."""
    values = torch.unique(row.double())
    if len(values) > most:
        return None
    if row.numel() >= 4 * most or len(values) < 2 or row.dtype == torch.bfloat16:
        return len(values)  # enough values to have met them all; bfloat16 is too coarse for the grid to show
    steps = values.diff() / values.diff().min()
    on_grid = any(_is_grid(steps * least, most) for least in (1, 2, 3))  # the least difference may be several steps
    return len(values) if on_grid else None


def _is_grid(steps: torch.Tensor, most: int) -> bool:
    return bool((steps - steps.round()).abs().max() < _OFF_GRID) and float(steps.sum()) < 2 * most


def check_bits(tensors: list[Stored], bits: int, kept: tuple[str, ...], simulated: bool) -> Iterator[Finding]:
    """Compare claimed bits with the stored values of each weight matrix.

    `kept` are names declared to stay as they were; `simulated` says that the format is only simulated in floats.
    """
    for stored in tensors:
        name = stored.name.lower()
        if not stored.is_matrix or any(part in name for part in (*_KEPT, *kept)):
            continue
        where, path = stored.name, str(stored.file)
        if stored.tensor.is_floating_point() and stored.tensor.element_size() * 8 > bits:
            if (found := levels(stored.tensor, 2**bits)) > 2**bits:
                why = f"{bits} bits give at most {2**bits} values a row; this weight was skipped"
                yield Finding(test="T1", path=path, where=where, claimed=2**bits, measured=found, why=why)
            elif not simulated:
                why = f"{found} distinct values stored as {stored.tensor.dtype}: no smaller than before"
                yield Finding(
                    test="T2",
                    path=path,
                    where=where,
                    claimed=bits,
                    measured=stored.tensor.element_size() * 8,
                    why=why,
                )


def check_finite(tensors: list[Stored]) -> Iterator[Finding]:
    """Find weights that are NaN or infinite."""
    for stored in tensors:
        if stored.tensor.is_floating_point() and (bad := int((~torch.isfinite(stored.tensor)).sum())):
            why = f"{bad} of {stored.tensor.numel()} values are not finite"
            yield Finding(test="T6", path=str(stored.file), where=stored.name, measured=bad, why=why)


def check_duplicates(tensors: list[Stored]) -> Iterator[Finding]:
    """Find matrices that are stored twice and so counted twice. Constant ones (fresh gates, masks) are left out."""
    seen = dict[str, str]()
    for stored in tensors:
        if not stored.is_matrix or stored.tensor.unique().numel() < 3:
            continue
        if (first := seen.setdefault(digest(stored.tensor), stored.name)) != stored.name:
            why = f"bit for bit the same as {first}: parameters counted twice"
            yield Finding(test="T1", path=str(stored.file), where=stored.name, why=why)


def check_parameters(tensors: list[Stored], claimed: int, path: Path) -> Iterator[Finding]:
    """Compare a claimed parameter count with the stored values, where these are stored one by one (floats)."""
    if tensors and all(stored.tensor.is_floating_point() for stored in tensors):
        found = sum(stored.tensor.numel() for stored in tensors)
        if found != claimed:
            why = "the parameter count is not the number of stored values"
            yield Finding(
                test="T1", path=str(path), where="parameters", claimed=float(claimed), measured=float(found), why=why
            )


def describe_bits(config: dict[str, Any]) -> tuple[int | None, tuple[str, ...], bool]:
    """Return the bits that a configuration claims, the modules that it leaves out, and whether it only simulates."""
    block = next(
        (
            config[key]
            for key in ("quantization_config", "quantization", "quantisation")
            if isinstance(config.get(key), dict)
        ),
        config,
    )
    bits = next((block[key] for key in ("bits", "weight_bits", "w_bit") if isinstance(block.get(key), int)), None)
    kept = block.get("modules_to_not_convert") or block.get("skipped") or ()
    return bits, tuple(str(name).lower() for name in kept), bool(block.get("simulated"))
