"""Claims and results survive JSON, and refuse what they do not know."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from phases.contract import Claim, PhaseResult, Probe


def claim(**changes: object) -> Claim:
    values = {"key": "cognate/x", "value": 1.0, "unit": "bits", "better": "lower", "tolerance": 0.1}
    return Claim.model_validate(values | {"probe": Probe(name="p")} | changes)


@pytest.mark.parametrize(
    ("better", "target", "met"),
    [("lower", 1.0, True), ("lower", 0.9, False), ("higher", 2.0, False), ("lower", None, None)],
)
def test_met(better: str, target: float | None, met: bool | None) -> None:
    assert claim(better=better, target=target).met is met


def test_no_claim_without_a_probe() -> None:
    with pytest.raises(ValidationError):
        claim(probe=None)


def test_no_claim_that_is_not_a_number() -> None:
    with pytest.raises(ValidationError):
        claim(value=float("nan"))


def test_round_trip_and_unknown_keys() -> None:
    now = datetime.now(UTC)
    result = PhaseResult(
        success=True, phase="cognate", model=None, claims=(claim(),), start_time=now, end_time=now, duration_seconds=0
    )
    assert PhaseResult.model_validate_json(result.model_dump_json()) == result
    with pytest.raises(ValidationError):
        PhaseResult.model_validate(result.model_dump() | {"extra": 1})
