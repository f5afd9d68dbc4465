"""Exact references for the figures that the checks compute, and the borders between fraud and honesty."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phases.baking.validation import words
from phases.baking.validation.availability import lower_bound, runs_needed
from phases.baking.validation.constant import check_metric
from phases.baking.validation.quality import cosines
from phases.baking.validation.recovery import check_strategy
from phases.baking.validation.regular import check_table
from phases.baking.validation.reports import audit_document
from phases.baking.validation.weights import Stored, check_bits, check_duplicates, levels


def refuted_by(document):
    return [finding.test for finding in audit_document(document, "/nowhere/report.json").findings]


def test_three_nines_take_2996_clean_runs():
    assert runs_needed(0.999) == 2996
    assert refuted_by({"reliability_percent": 99.9, "runs": 2995}) == ["T11"]
    assert refuted_by({"reliability_percent": 99.9, "runs": 2996}) == []


@given(st.integers(1, 10_000), st.integers(0, 50))
def test_the_bound_is_below_the_rate_and_falls_with_failures(runs, failures):
    bound = lower_bound(runs, failures)
    assert 0 <= bound < 1
    assert bound <= max(0.0, 1 - failures / runs)
    assert lower_bound(runs, failures + 1) <= bound


def test_the_bound_without_failures_is_the_rule_of_three():
    assert lower_bound(1000, 0) == pytest.approx(1 + math.log(0.05) / 1000)


def test_a_speed_up_is_computed_again_from_its_samples():
    samples = {"fp32": [20.0, 20.4, 19.8], "int8": [10.0, 10.1, 9.9]}
    claim = {"key": "a/speedup", "unit": "x", "baseline": "fp32", "samples": samples, "clock": "thread_time"}
    assert refuted_by({"claims": [claim | {"value": 2.0}]}) == []
    assert refuted_by({"claims": [claim | {"value": 2.2}]}) == ["T5"]


def test_sizes_are_read_from_the_files(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 400)
    (tmp_path / "b").write_bytes(b"b" * 100)
    claim = {"key": "a/size_ratio", "unit": "x", "files": {"before": "a", "after": "b"}}
    for value, expected in ((4.0, 0), (4.5, 1)):
        report = audit_document({"claims": [claim | {"value": value}]}, str(tmp_path / "r.json"))
        assert len(report.findings) == expected


@pytest.mark.parametrize("ratios", [(4.0, 4.001, 3.99), (3.96, 3.96, 3.85)])
def test_exactly_four_in_every_row_is_refuted_and_int8_is_not(ratios):
    found = list(check_table("t", [{"compression_ratio": ratio} for ratio in ratios], "r"))
    assert [finding.test for finding in found] == (["T8"] if ratios[0] == 4.0 else [])


def test_settings_may_be_as_regular_as_they_like():
    rows = [
        {"batch_size": 8 * i, "learning_rate": 0.001 * i, "accuracy": v}
        for i, v in enumerate([0.51, 0.7, 0.74, 0.8, 0.83])
    ]
    assert not list(check_table("t", rows, "r"))


def test_microseconds_are_judged_by_their_digits_and_not_by_their_exponents():
    honest = [2.31, 2.47, 2.52, 2.68, 2.73, 2.86, 2.94, 3.12]
    for scale in (1.0, 1e-5, 1e-7):  # the last two would be written 2.31e-05 and 2.31e-07
        assert not list(check_table("t", [{"seconds": scale * value} for value in honest], "r"))
    assert list(
        check_table("t", [{"seconds": value} for value in (1.25, 1.35, 1.45, 1.55, 1.65, 1.8, 1.95, 2.05)], "r")
    )


@given(st.sampled_from([2, 4, 8]), st.integers(0, 1000))
def test_quantised_rows_keep_to_their_bits_and_gaussian_ones_do_not(bits, seed):
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(seed))
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True) / most
    assert levels((weight / scale).round() * scale, 2**bits) <= 2**bits
    assert levels(weight, 2**bits) > 2**bits


def test_simulated_quantisation_is_allowed_where_it_is_declared(tmp_path):
    stored = [Stored(tmp_path / "m", "up", torch.randint(-7, 8, (64, 64)).float())]
    assert [finding.test for finding in check_bits(stored, 4, (), simulated=False)] == ["T2"]
    assert not list(check_bits(stored, 4, (), simulated=True))
    assert not list(check_bits(stored, 4, ("up",), simulated=False))


def test_constant_tensors_are_no_duplicates(tmp_path):
    zero = [Stored(tmp_path / "m", name, torch.zeros(64, 64)) for name in "ab"]
    same = [Stored(tmp_path / "m", name, torch.arange(4096.0).reshape(64, 64)) for name in "ab"]
    assert not list(check_duplicates(zero))
    assert [finding.where for finding in check_duplicates(same)] == ["b"]


def test_cosines_match_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 7))
    expected = [np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(cosines(a, b), expected)
    assert cosines(np.zeros((1, 3)), np.ones((1, 3))) == 0


def test_a_metric_must_react_to_its_input_and_not_to_its_seed():
    assert not check_metric("m", lambda rows, seed: sum(rows) / 4, [1, 1, 1, 1], [0, 0, 0, 0])
    assert len(check_metric("m", lambda rows, seed: 0.9, [1], [0])) == 1
    assert len(check_metric("m", lambda rows, seed: sum(rows) + seed / 100, [1], [0])) == 1


def test_a_strategy_that_gives_up_openly_is_no_fraud():
    assert not check_strategy("s", lambda task: task())
    assert check_strategy("s", lambda task: "done")[0].test == "T10"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tool_accuracy", True),
        ("toolAccuracy", True),
        ("accuracy_threshold", False),
        ("min_accuracy", False),
        ("baking/persona_coherence", True),
        ("accurate", False),
    ],
)
def test_names_of_measurements(name, expected):
    assert words.is_metric(name) is expected
