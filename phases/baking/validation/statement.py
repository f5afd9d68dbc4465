"""What a report claims, in one form, whoever wrote it: claims of a phase, figures of a benchmark, results of an agent.

A `Statement` is a number together with the evidence that came with it. Fields that a report leaves out stay None: what
is missing is for the checks to judge. Paths of evidence are relative to the report. Unknown fields are ignored, since
reports of other tools are audited, too.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from phases.baking.validation import words

_LISTS = ("claims", "figures", "statements", "results", "agent_reports")
_CONTEXT = ("host", "machine", "executed_on", "clock", "load")


class Statement(BaseModel):
    """A claimed number. `files`, `sha256`, `samples` and `conditions` are by role or by candidate."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str = Field(validation_alias=AliasChoices("key", "metric", "name"))
    value: float
    unit: str = ""
    before: float | None = None
    after: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = Field(default=None, validation_alias=AliasChoices("n", "runs", "sample_size", "trials"))
    failures: int | None = None
    samples: dict[str, list[float]] | int | None = None
    percentiles: dict[str, float] = Field(default_factory=dict)
    statistic: dict[str, str] = Field(default_factory=dict, description="candidate -> median, mean, min ...")
    candidate: str | None = None
    baseline: dict[str, Any] | str | None = None
    alternatives: dict[str, float] = Field(default_factory=dict, description="other baselines, in seconds or ms")
    conditions: dict[str, dict[str, Any]] = Field(default_factory=dict)
    clock: str | None = None
    load: float | None = None
    bits: int | None = None
    files: dict[str, str] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(default_factory=dict)
    device: str | None = None
    executed_on: tuple[str, ...] = ()
    host: dict[str, Any] = Field(default_factory=dict, validation_alias=AliasChoices("host", "machine"))
    probe: dict[str, Any] | None = None
    injected: int | None = None
    recovered: int | None = None
    reinvoked: int | None = None
    source: str = Field(default="", exclude=True)

    @field_validator("samples", mode="before")
    @classmethod
    def _series(cls, value: Any) -> Any:
        """Take a bare list as the candidate's series, and a name of a file as no samples at all."""
        return {"value": value} if isinstance(value, list) else None if isinstance(value, str) else value

    @property
    def series(self) -> dict[str, list[float]]:
        """The raw samples by candidate; empty where only their number is given."""
        return self.samples if isinstance(self.samples, dict) else {}

    @property
    def is_ratio(self) -> bool:
        """Whether it compares with something: a unit of x, or a name that says so."""
        return self.unit.strip().lower() in {"x", "times", "ratio"} or words.is_ratio(self.key)

    @property
    def is_timing(self) -> bool:
        return words.is_timing(self.key, self.unit)

    @property
    def has_evidence(self) -> bool:
        """Whether anything came with the number that lets another person get it again."""
        found = (self.probe, self.samples, self.files, self.n, self.low, self.sha256, self.injected)
        return any(found) or (self.before is not None and self.after is not None)

    def at(self, role: str) -> Path | None:
        """Return the path of a file of the evidence, None where there is no such role."""
        return Path(self.source).parent / self.files[role] if role in self.files else None


def statements(document: Any, source: str) -> Iterator[Statement]:
    """Yield the statements of a parsed report that lies at `source`; context given once holds for each of them."""
    if not isinstance(document, dict):
        return
    context = {key: document[key] for key in _CONTEXT if key in document}
    found = set[str]()
    for name in _LISTS:
        entries = document.get(name, ())
        for entry in entries if isinstance(entries, list) else ():
            if (statement := _statement(context | entry if isinstance(entry, dict) else entry, source)) is not None:
                found.add(words.last_part(statement.key))
                yield statement
    for key, value in document.items():
        if words.is_metric(key) and words.last_part(key) not in found and _is_number(value):
            yield Statement.model_validate(
                context | {"key": key, "value": value, "n": _count(document), "source": source}
            )


def _statement(entry: Any, source: str) -> Statement | None:
    try:
        return Statement.model_validate({**entry, "source": source}) if isinstance(entry, dict) else None
    except ValidationError:
        return None  # an entry without a name and a number claims nothing


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(document: dict[str, Any]) -> int | None:
    counts = (document.get(key) for key in ("n", "runs", "trials", "sample_size"))
    return next((count for count in counts if isinstance(count, int)), None)


def tables(document: Any, name: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield every list of three or more rows (objects that share numeric columns), with its path in the document."""
    if isinstance(document, dict):
        rows = [row for row in document.values() if isinstance(row, dict)]
        if len(rows) >= 3 and len(rows) == len(document) and _columns(rows):
            yield name, rows
        for key, value in document.items():
            yield from tables(value, f"{name}/{key}" if name else str(key))
    elif isinstance(document, list):
        rows = [row for row in document if isinstance(row, dict)]
        if len(rows) >= 3 and len(rows) == len(document) and _columns(rows):
            yield name, rows
        for number, value in enumerate(document):
            yield from tables(value, f"{name}[{number}]")


def _columns(rows: list[dict[str, Any]]) -> set[str]:
    shared = set.intersection(*(set(row) for row in rows))
    return {key for key in shared if all(_is_number(row[key]) for row in rows)}


def column(rows: list[dict[str, Any]], key: str) -> list[float]:
    """Return a numeric column, NaN where a row has none."""
    return [float(row[key]) if _is_number(row.get(key)) else math.nan for row in rows]


def numeric_columns(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names of the columns that are numbers in every row, in order."""
    shared = _columns(rows)
    return [key for key in rows[0] if key in shared]
