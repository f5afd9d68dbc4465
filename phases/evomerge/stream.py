"""Runs a plan from disk to disk: tensors are read, merged and appended one by one, and the result appears whole or not.

Shapes and dtypes are known before the first byte, so each file's header is written up front and its hash is taken as
the data passes. All goes to a folder `.tmp-NAME` beside the target, which is renamed at the end; what a killed process
left there is removed by the next one.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from phases import storage
from phases.contract import ModelRef
from phases.errors import ArtifactError, BusyError, ConfigError
from phases.evomerge.checkpoint import CONFIG, DTYPES, INDEX, SINGLE, Checkpoint
from phases.evomerge.errors import MergeError
from phases.evomerge.methods import MaskKey
from phases.evomerge.pieces import merge_pieces
from phases.evomerge.plan import COPY, MergePlan, Step, TensorRef
from phases.modeldir import LINEAGE, Lineage, combined_digest, is_model, load_lineage

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def execute_plan(
    plan: MergePlan,
    out_dir: str | Path,
    *,
    seed: int = 0,
    guard: float | None = 4.0,
    shard_bytes: int | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> ModelRef:
    """Write the merged model to `out_dir`, a folder that is not there yet, and return its reference.

    `seed` is that of the random masks, `guard` the blow-up limit of `merge`. Files hold at most `shard_bytes` bytes of
    tensors (a larger tensor has one of its own); None writes one file. Raises `MergeError` naming the tensor.
    """
    if "://" in str(out_dir):
        raise ConfigError.of("OUT_DIR", str(out_dir), "not a local folder", "merge to this machine and copy the result")
    with _staging(Path(out_dir)) as folder:
        parents = {role: _parent_digest(checkpoint) for role, checkpoint in _roles(plan).items()}
        merger = _Merger(plan, seed, guard, folder, on_step)
        hashes = _write_weights(plan, merger, folder, shard_bytes)
        weights = combined_digest(hashes)
        if SINGLE not in hashes:
            hashes[INDEX] = storage.sha256(str(folder / INDEX))
        if plan.config:
            storage.write_json(str(folder / CONFIG), plan.config)
            hashes[CONFIG] = storage.sha256(str(folder / CONFIG))
        for file in plan.companions:
            shutil.copyfile(file, folder / file.name)
            hashes[file.name] = storage.sha256(str(folder / file.name))
        lineage = Lineage(
            phase="evomerge",
            seed=seed,
            parents=parents,
            config={"recipe": plan.recipe.raw, "guard": guard},
            parameters=plan.parameters,
            files=hashes,
        )
        storage.write_json(str(folder / LINEAGE), lineage.model_dump(mode="json"))
    return ModelRef(uri=str(out_dir), sha256=weights, parameters=plan.parameters)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `target` that takes its place at the end, or goes where the body raises."""
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError.of("OUT_DIR", str(target), "exists already", "name a new folder, or remove this one")
    folder = target.parent / f".tmp-{target.name}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(f"{target}: another process is merging into it") from error
        for left in folder.iterdir():
            left.unlink()
        try:
            yield folder
            os.fsync(lock)
            os.replace(folder, target)
        except BaseException:
            shutil.rmtree(folder)
            raise
    finally:
        os.close(lock)


def _roles(plan: MergePlan) -> dict[str, Checkpoint]:
    """Return the parents by role: `base`, and the models by their folders' names, numbered where those are equal."""
    roles: dict[str, Checkpoint] = {}
    for model, checkpoint in plan.checkpoints.items():
        name = "base" if model == plan.recipe.base_model else checkpoint.folder.name
        roles[f"{name}-{len(roles)}" if name in roles else name] = checkpoint
    return roles


def _parent_digest(checkpoint: Checkpoint) -> str:
    """Hash a parent's weights. Raises `ArtifactError` where its own lineage says otherwise."""
    found = checkpoint.digest()
    if is_model(str(checkpoint.folder)):
        files = load_lineage(str(checkpoint.folder)).files
        expected = combined_digest({name: files[name] for name in files if name.endswith(".safetensors")})
        if found != expected:
            raise ArtifactError(f"{checkpoint.uri}: weights are {found[:12]}..., {LINEAGE} says {expected[:12]}...")
    return found


def _write_weights(plan: MergePlan, merger: "_Merger", folder: Path, shard_bytes: int | None) -> dict[str, str]:
    """Write all tensors and, of several files, the index. Return file name -> SHA-256."""
    shards = _shards(plan.steps, shard_bytes or plan.bytes)
    names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    names = names if len(shards) > 1 else [SINGLE]
    hashes = {}
    for name, steps in zip(names, shards, strict=True):
        with (folder / name).open("xb") as file:
            writer = _HashingWriter(file)
            writer.write(safetensors_header(steps))
            for step in steps:
                merger.write(step, writer)
            file.flush()
            os.fsync(file.fileno())
        hashes[name] = writer.digest.hexdigest()
    if len(shards) > 1:
        where = {step.name: name for name, steps in zip(names, shards, strict=True) for step in steps}
        storage.write_json(str(folder / INDEX), {"metadata": {"total_size": plan.bytes}, "weight_map": where})
    return hashes


def _shards(steps: Sequence[Step], limit: int) -> list[list[Step]]:
    """Cut the steps, in their order, into groups of at most `limit` bytes."""
    shards: list[list[Step]] = [[]]
    filled = 0
    for step in steps:
        if shards[-1] and filled + step.bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(step)
        filled += step.bytes
    return shards


def safetensors_header(steps: Sequence[Step]) -> bytes:
    """Return the beginning of a safetensors file with these tensors, padded so that data is aligned to 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for step in steps:
        start, end = end, end + step.bytes
        header[step.name] = {"dtype": _NAMES[step.dtype], "shape": list(step.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _HashingWriter:
    """Appends to a file and hashes what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self.file.write(data)
        self.digest.update(data)


@dataclass(frozen=True)
class _Merger:
    """Makes the tensors of a plan."""

    plan: MergePlan
    seed: int
    guard: float | None
    folder: Path
    on_step: Callable[[Step], None]

    def write(self, step: Step, writer: _HashingWriter) -> None:
        """Merge one tensor and append it."""
        inputs = [self._read(ref) for ref in (*step.inputs, step.base) if ref is not None]
        if step.method == COPY:
            self._check_equal(step, inputs)
            _append(inputs[0], writer)
        else:
            for piece in merge_pieces(step, inputs, MaskKey(self.seed, step.name), self.guard, self.folder):
                _append(piece, writer)
        self.on_step(step)

    def _read(self, ref: TensorRef) -> Tensor:
        return self.plan.checkpoints[ref.model].read(ref.name)

    def _check_equal(self, step: Step, tensors: Sequence[Tensor]) -> None:
        for ref, tensor in zip(step.inputs, tensors, strict=True):
            if not torch.equal(tensor, tensors[0]):
                uri = self.plan.checkpoints[ref.model].uri
                raise MergeError(
                    f"{uri}: buffer {ref.name!r} ({tensor.dtype}) differs from that of {step.inputs[0].model}; "
                    "only buffers that all models agree on can be taken over"
                )


def _append(tensor: Tensor, writer: _HashingWriter) -> None:
    if math.prod(tensor.shape):
        writer.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
