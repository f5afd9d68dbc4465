"""Every planted fraud of the benchmark is found by the test that is meant for it, and every honest twin passes."""

import numpy as np
import pytest

from benchmarks import audit_code_cases, audit_model_cases, audit_report_cases
from benchmarks.audit_cases import CASES

CORPUS = (audit_code_cases, audit_model_cases, audit_report_cases)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.test}: {case.name}")
def test_the_fraud_is_found_and_its_twin_is_not(tmp_path, case):
    found = {}
    for kind in ("fraud", "twin"):
        (tmp_path / kind).mkdir()
        found[kind] = case.subject(tmp_path / kind, np.random.default_rng(12345), kind == "fraud")
    assert case.test in {finding.test for finding in found["fraud"]}
    assert found["twin"] == []


def test_every_test_of_the_battery_has_frauds():
    assert {case.test for case in CASES} == {f"T{number}" for number in range(1, 13)}
    assert len(CASES) >= 40
