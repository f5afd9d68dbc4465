"""T1, T2 on reports: sizes, hashes and bits are read again from the files that a statement names.

A statement without any evidence is a finding here, too: what nobody can measure again is not a result.
"""

from collections.abc import Iterator
from pathlib import Path

from phases import storage
from phases.baking.validation import words
from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import Statement
from phases.baking.validation.weights import check_bits, stored_tensors

_UNITS = {"b": 1, "bytes": 1, "byte": 1, "kb": 1e3, "kib": 2**10, "mb": 1e6, "mib": 2**20, "gb": 1e9, "gib": 2**30}
_TOLERANCE = 0.02  # covers rounding to two digits and MB against MiB up to one part in twenty of a MiB


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def check(statement: Statement) -> Iterator[Finding]:
    """Re-stat what a statement names; hash it again; count its values against its bits."""
    if not statement.has_evidence:
        why = "no evidence: no probe, samples, files, interval or number of runs"
        yield _finding(statement, why, claimed=statement.value)
    missing = [role for role in statement.files if not _path(statement, role).exists()]
    for role in missing:
        yield _finding(statement, f"evidence {statement.files[role]} ({role}) is not there")
    for role, expected in statement.sha256.items():
        path = statement.at(role)
        if path is not None and path.is_file() and (found := storage.sha256(str(path))) != expected:
            yield _finding(statement, f"{path.name} is another file than the one measured", expected, found)
    if not missing:
        yield from _sizes(statement)
        yield from _bits(statement)


def _sizes(statement: Statement) -> Iterator[Finding]:
    after, before = statement.at("after") or statement.at("model"), statement.at("before")
    if after is None or not words.is_size(statement.key):
        return
    unit = _UNITS.get(statement.unit.strip().lower())
    if unit is not None and not statement.is_ratio:
        measured = size_on_disk(after) / unit
    elif before is not None and statement.unit.strip() == "%":
        measured = 100 * (1 - size_on_disk(after) / size_on_disk(before))
    elif before is not None and (statement.is_ratio or "compression" in words.parts(statement.key)):
        measured = size_on_disk(before) / size_on_disk(after)
    else:
        return
    if abs(statement.value - measured) > _TOLERANCE * abs(measured):
        yield _finding(statement, "the files have another size", statement.value, measured)


def _bits(statement: Statement) -> Iterator[Finding]:
    after = statement.at("after") or statement.at("model")
    if statement.bits is not None and after is not None:
        for finding in check_bits(list(stored_tensors(after)), statement.bits, (), simulated=False):
            yield finding.model_copy(update={"path": statement.source, "where": f"{statement.key}: {finding.where}"})


def _path(statement: Statement, role: str) -> Path:
    path = statement.at(role)
    assert path is not None, "the role comes from the statement itself"
    return path


def _finding(
    statement: Statement, why: str, claimed: float | str | None = None, measured: float | str | None = None
) -> Finding:
    return Finding(test="T1", path=statement.source, where=statement.key, claimed=claimed, measured=measured, why=why)
