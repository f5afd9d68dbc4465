"""What an audit says: a finding per claim that does not hold, and the report that collects them.

The tests T1 to T12 are named here once. A finding states what was claimed, what was measured from the files, and why
that refutes the claim; an audit without findings says how much it looked at, so that silence is not mistaken for proof.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

TestName = Literal["T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8", "T9", "T10", "T11", "T12"]
TESTS: dict[TestName, str] = {
    "T1": "bytes, hashes and evidence on disk",
    "T2": "fake quantisation",
    "T3": "nothing was changed",
    "T4": "weak baseline",
    "T5": "timing, or work that was skipped",
    "T6": "quality: leaked data, hidden collapse, NaN",
    "T7": "metric that is constant, random or adjusted",
    "T8": "table too regular to be measured",
    "T9": "code that cannot fail",
    "T10": "recovery that recovers nothing",
    "T11": "availability beyond its sample size",
    "T12": "hardware that it never ran on",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Finding(_Frozen):
    """One claim that does not hold. `where` is a line number, a claim's key or a tensor's name."""

    test: TestName
    path: str
    where: str
    claimed: float | str | None = None
    measured: float | str | None = None
    why: str


class Report(BaseModel):
    """What an audit of `path` found. `checked` counts what it looked at, by kind."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    path: str
    kind: Literal["model", "report", "run", "code", "folder"]
    checked: dict[str, int] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def clean(self) -> bool:
        """Whether nothing was refuted."""
        return not self.findings

    def by_test(self) -> dict[TestName, int]:
        """Count the findings of each test."""
        counts = Counter(finding.test for finding in self.findings)
        return {test: counts[test] for test in TESTS}


def merge(path: str, kind: Literal["model", "report", "run", "code", "folder"], parts: Iterable[Report]) -> Report:
    """Return one report for several, findings in order and counts added."""
    parts = list(parts)
    checked = Counter[str]()
    for part in parts:
        checked.update(part.checked)
    findings = tuple(dict.fromkeys(finding for part in parts for finding in part.findings))
    return Report(path=path, kind=kind, checked=dict(checked), findings=findings)
