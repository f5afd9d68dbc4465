"""Audit of a model directory: what its configuration, lineage and reports say against the bytes that lie there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phases import storage
from phases.baking.validation import weights
from phases.baking.validation.finding import Finding, Report, merge
from phases.baking.validation.reports import audit_report
from phases.baking.validation.sizes import size_on_disk
from phases.baking.validation.weights import Stored
from phases.errors import ArtifactError

WEIGHTS = (".safetensors", ".onnx")
_NOT_REPORTS = frozenset({"config.json", "tokenizer.json", "lineage.json", "tokenizer_config.json", "vocab.json"})
_DECLARED = ("passthrough", "slices", "upcycl", "repeat", "shared")


def is_model_folder(path: Path) -> bool:
    """Say whether a folder holds weights."""
    return path.is_dir() and any(file.suffix in WEIGHTS for file in path.iterdir())


def audit_model(path: Path) -> Report:
    """Audit a folder with safetensors or ONNX weights, or one such file, and the JSON files beside the weights."""
    files = [file for file in sorted(path.iterdir()) if file.suffix in WEIGHTS] if path.is_dir() else [path]
    folder = path if path.is_dir() else None
    broken = [finding for file in files if (finding := weights.damage(file)) is not None]
    if broken:
        return Report(path=str(path), kind="model", checked={"files": len(files)}, findings=tuple(broken))
    tensors = [stored for file in files for stored in weights.stored_tensors(file)]
    findings = [*weights.check_finite(tensors)]
    if folder is not None:
        findings += _check_folder(folder, tensors)
    own = Report(
        path=str(path),
        kind="model",
        checked={"files": len(files), "tensors": len(tensors), "bytes": sum(stored.bytes for stored in tensors)},
        findings=tuple(findings),
    )
    beside = sorted(folder.glob("*.json")) if folder is not None else []
    reports = [audit_report(file) for file in beside if file.name not in _NOT_REPORTS]
    return merge(str(path), "model", [own, *reports])


def _check_folder(folder: Path, tensors: list[Stored]) -> Iterator[Finding]:
    config, lineage = _json(folder / "config.json"), _json(folder / "lineage.json")
    bits, kept, simulated = weights.describe_bits(config)
    if bits is not None:
        yield from weights.check_bits(tensors, bits, kept, simulated)
    if not any(word in repr((lineage.get("config"), config)).lower() for word in _DECLARED):
        yield from weights.check_duplicates(tensors)
    yield from _sizes(folder, config)
    yield from _hashes(folder, lineage)
    parameters = lineage.get("parameters") or config.get("num_parameters") or config.get("parameters")
    if isinstance(parameters, int):
        yield from weights.check_parameters(tensors, parameters, folder)
    changed = bits is not None
    if changed and (same := set(lineage.get("parents", {}).values()) & set(lineage.get("files", {}).values())):
        why = "the weights have the hash of the parent: nothing was quantised"
        yield Finding(test="T3", path=str(folder), where="lineage.json", measured=min(same), why=why)


def _sizes(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    stored = sum(size_on_disk(file) for file in folder.iterdir() if file.suffix in WEIGHTS)
    for key, unit in (("size_bytes", 1.0), ("model_size_bytes", 1.0), ("size_mb", 1e6), ("model_size_mb", 1e6)):
        claimed = config.get(key)
        if isinstance(claimed, int | float) and abs(claimed * unit - stored) > 0.05 * stored:
            why = "the weights take another size on disk"
            where = f"config.json: {key}"
            yield Finding(test="T1", path=str(folder), where=where, claimed=claimed, measured=stored / unit, why=why)


def _hashes(folder: Path, lineage: dict[str, Any]) -> Iterator[Finding]:
    for name, expected in lineage.get("files", {}).items():
        file = folder / name
        if not file.is_file():
            yield Finding(test="T1", path=str(folder), where=name, why="named in lineage.json, and not there")
        elif (found := storage.sha256(str(file))) != expected:
            why = "another file than lineage.json recorded"
            yield Finding(test="T1", path=str(folder), where=name, claimed=expected, measured=found, why=why)


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    document = storage.read_json(str(path))
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: not a JSON object")
    return document
