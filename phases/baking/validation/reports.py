"""Audit of a report: every statement in a JSON file goes through every check that reads statements, and every table
through those that read tables. What a check needs and a report lacks is evidence that is missing, not a pass."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phases import storage
from phases.baking.validation import (
    availability,
    baselines,
    constant,
    hardware,
    noop,
    quality,
    recovery,
    regular,
    sizes,
    timing,
)
from phases.baking.validation.finding import Finding, Report
from phases.baking.validation.statement import Statement, statements, tables

CHECKS: tuple[Callable[[Statement], Iterator[Finding]], ...] = (
    sizes.check,
    noop.check,
    baselines.check,
    timing.check,
    quality.check,
    constant.check,
    recovery.check,
    availability.check,
    hardware.check,
)


def audit_report(path: Path) -> Report:
    """Audit the statements and tables of a JSON file, reading the files that it names as evidence.

    Raises `ArtifactError` where it is not JSON.
    """
    return audit_document(storage.read_json(str(path)), str(path.absolute()))


def audit_document(document: Any, source: str) -> Report:
    """Audit a parsed report. Paths of its evidence are relative to the folder of `source`."""
    found, claims = list[Finding](), list(statements(document, source))
    for statement in claims:
        for check in CHECKS:
            found.extend(check(statement))
    rows = list(tables(document))
    for name, table in rows:
        found.extend(regular.check_table(name, table, source))
    found.extend(hardware.check_document(document, source))
    found.extend(recovery.check_log(document, source))
    checked = {"reports": 1, "statements": len(claims), "tables": len(rows)}
    return Report(path=source, kind="report", checked=checked, findings=tuple(dict.fromkeys(found)))
