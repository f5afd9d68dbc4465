"""Model directories: `config.json`, `model.safetensors`, `tokenizer.json` and `lineage.json`, as the ecosystem expects.

`lineage.json` is written last and holds the hash of every other file, so a directory without it is not a model and a
directory with it is whole. Opening verifies the hashes; weights are safetensors and never pickle.
"""

import hashlib
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from phases import storage
from phases.contract import ModelRef
from phases.errors import ArtifactError
from phases.version import code_version

WEIGHTS, CONFIG, TOKENIZER, LINEAGE = "model.safetensors", "config.json", "tokenizer.json", "lineage.json"


class Lineage(BaseModel):
    """Where a model comes from. `files` maps each file of the directory to its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: str
    seed: int
    parents: dict[str, str] = Field(default_factory=dict, description="role -> SHA-256 of the parent's weights")
    config: dict[str, Any] = Field(default_factory=dict)
    code_version: str = Field(default_factory=code_version)
    parameters: int = 0
    files: dict[str, str] = Field(default_factory=dict)


def save_model(
    uri: str, *, tensors: dict[str, torch.Tensor], config: dict[str, Any], tokenizer: str, lineage: Lineage
) -> ModelRef:
    """Write a model directory and return its reference. What was there before stops being a model first.

    Raises `ArtifactError` where a weight is not finite: such a model must not look like a result.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtifactError(f"{uri}: weight {name} has values that are not finite; the model was not written")
    storage.remove(storage.join(uri, LINEAGE))
    storage.write_bytes(storage.join(uri, WEIGHTS), save({k: v.detach().contiguous() for k, v in tensors.items()}))
    storage.write_json(storage.join(uri, CONFIG), config)
    storage.write_bytes(storage.join(uri, TOKENIZER), tokenizer.encode())
    files = {name: storage.sha256(storage.join(uri, name)) for name in (WEIGHTS, CONFIG, TOKENIZER)}
    parameters = sum(tensor.numel() for tensor in tensors.values())
    lineage = lineage.model_copy(update={"files": files, "parameters": parameters})
    storage.write_json(storage.join(uri, LINEAGE), lineage.model_dump(mode="json"))
    return ModelRef(uri=uri, sha256=files[WEIGHTS], parameters=parameters)


def copy_model(uri: str, to: str) -> None:
    """Copy a model directory with the ones inside it, each lineage behind its files, so that a part is never a model.

    Raises `ArtifactError` where one of them is no whole model.
    """
    for name in storage.names(uri):
        if is_model(inner := storage.join(uri, name)):
            copy_model(inner, storage.join(to, name))
    open_ref(uri)
    for name in (*load_lineage(uri).files, LINEAGE):
        storage.write_bytes(storage.join(to, name), storage.read_bytes(storage.join(uri, name)))


def is_model(uri: str) -> bool:
    """Say whether `uri` holds a complete model directory (its hashes are not looked at)."""
    return storage.exists(storage.join(uri, LINEAGE))


def load_lineage(uri: str) -> Lineage:
    """Return the lineage. Raises `ArtifactError` where `uri` is no complete model directory."""
    if not is_model(uri):
        raise ArtifactError(f"{uri}: no complete model directory ({LINEAGE} is missing); name one that a phase wrote")
    try:
        return Lineage.model_validate(storage.read_json(storage.join(uri, LINEAGE)))
    except ValidationError as error:
        raise ArtifactError(f"{storage.join(uri, LINEAGE)}: not a lineage of this version ({error})") from error


def damaged_files(uri: str) -> list[str]:
    """Return one line for each file of a model directory that is missing or whose hash differs."""
    damage = []
    for name, expected in load_lineage(uri).files.items():
        path = storage.join(uri, name)
        if not storage.exists(path):
            damage.append(f"{path}: missing")
        elif (found := storage.sha256(path)) != expected:
            damage.append(f"{path}: SHA-256 is {found[:12]}..., lineage.json says {expected[:12]}...")
    return damage


def open_ref(uri: str, sha256: str | None = None) -> ModelRef:
    """Return the reference of the directory at `uri` after verifying each hash.

    Raises `ArtifactError` naming each file that is missing or altered, or where the weights are not those of `sha256`.
    """
    lineage = load_lineage(uri)
    if damage := damaged_files(uri):
        raise ArtifactError("; ".join(damage))
    found = combined_digest({name: digest for name, digest in lineage.files.items() if name.endswith(".safetensors")})
    if sha256 is not None and found != sha256:
        raise ArtifactError(f"{uri}: weights are {found[:12]}..., expected {sha256[:12]}...")
    return ModelRef(uri=uri, sha256=found, parameters=lineage.parameters)


def load_tensors(uri: str) -> dict[str, torch.Tensor]:
    """Return the weights by name, from all files. Raises `ArtifactError` naming one that is not valid safetensors."""
    tensors = dict[str, torch.Tensor]()
    for name in load_lineage(uri).files:
        if name.endswith(".safetensors"):
            path = storage.join(uri, name)
            try:
                tensors |= load(storage.read_bytes(path))
            except SafetensorError as error:
                raise ArtifactError(f"{path}: not a valid safetensors file ({error})") from error
    return tensors


def load_model_config(uri: str) -> dict[str, Any]:
    """Return `config.json` as a dictionary."""
    return dict(storage.read_json(storage.join(uri, CONFIG)))


def load_tokenizer_json(uri: str) -> str:
    """Return the text of `tokenizer.json`."""
    return storage.read_bytes(storage.join(uri, TOKENIZER)).decode()


def combined_digest(hashes: dict[str, str]) -> str:
    """Return one SHA-256 for files by name; that of the file itself where there is one."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def find_model(run_or_model: str) -> str:
    """Return the model directory that `run_or_model` means: itself, or the model of the run's last finished phase."""
    if is_model(run_or_model):
        return run_or_model
    for name in reversed(storage.names(run_or_model)):
        candidate = storage.join(run_or_model, name, "model")
        if name[:2].isdigit() and is_model(candidate):
            return candidate
    raise ArtifactError(f"{run_or_model}: neither a model directory nor a run with a finished phase")
