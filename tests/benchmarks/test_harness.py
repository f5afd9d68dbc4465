"""The harness: goals, discovery, turns, intervals, peak memory and the report's JSON."""

import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import forge
from benchmarks import harness
from benchmarks.harness import Figure, discover, each_seed, execute, interleave, machine, peak_rss, ratio_figure
from phases.errors import ConfigError, ForgeError
from phases.timing import bootstrap


@pytest.mark.parametrize(
    ("value", "better", "goal", "ok"),
    [(2.0, "higher", 2.0, True), (1.9, "higher", 2.0, False), (0.6, "lower", 0.6, True), (0.7, "lower", 0.6, False)],
)
def test_ok_compares_value_with_goal(value: float, better: str, goal: float, ok: bool) -> None:
    assert Figure(key="k", value=value, unit="x", better=better, goal=goal).ok is ok


def test_without_a_goal_nothing_can_fall_short() -> None:
    assert Figure(key="k", value=1.0, unit="x", better="higher").ok is None


def test_a_value_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Figure(key="k", value=float("nan"), unit="x", better="higher")


def test_candidates_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warmup=1)
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert {name: len(series) for name, series in seconds.items()} == {"a": 3, "b": 3}


def test_waiting_is_not_counted() -> None:
    import time

    assert interleave({"sleep": lambda: time.sleep(0.05)}, 1, warmup=0)["sleep"][0] < 0.04


def test_ratio_is_the_median_of_paired_ratios() -> None:
    figure = ratio_figure(
        "k", {"ours": [1.0, 1.0, 2.0], "plain": [2.0, 3.0, 8.0]}, "ours", "plain", goal=3.5, work=30.0
    )
    assert figure.value == 3.0
    assert figure.baseline is not None
    assert figure.baseline.value == 10.0
    assert figure.low == 2.0
    assert figure.high == 4.0
    assert figure.samples == 3
    assert figure.ok is False


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_interval_lies_within_the_values(values: list[float]) -> None:
    low, high = bootstrap(values, resamples=50)
    assert min(values) <= low <= high <= max(values)


def test_interval_narrows_with_more_values() -> None:
    values = np.random.default_rng(1).normal(size=400)
    few, many = bootstrap(values[:20]), bootstrap(values)
    assert many[1] - many[0] < 0.6 * (few[1] - few[0])


def test_each_seed_is_measured_in_turn_and_an_error_comes_through() -> None:
    assert each_seed(math.factorial, [3, 0, 4]) == [6, 1, 24]
    with pytest.raises(ValueError, match="not defined for negative"):
        each_seed(math.factorial, [1, -1])


def test_discovery_lists_modules_with_run_only() -> None:
    found = discover()
    assert "harness" not in found
    assert all(found.values()), "each benchmark opens with a summary line"


def test_machine_is_described() -> None:
    found = machine()
    assert found.cpu
    assert found.cores >= 1


def test_report_and_samples_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure(key="speed", value=3.0, unit="x", better="higher", goal=4.0, raw={"ours": [1.0, 2.0]})
    module = types.ModuleType("benchmarks.sample")
    module.__dict__["run"] = lambda quick: [figure]
    monkeypatch.setattr(harness, "discover", lambda: {"sample": "A sample."})
    monkeypatch.setitem(sys.modules, "benchmarks.sample", module)
    report = execute("sample", quick=True, out=tmp_path)
    assert not report.ok
    assert json.loads((tmp_path / "sample-samples.json").read_text()) == {"speed": {"ours": [1.0, 2.0]}}
    data = json.loads(report.model_dump_json())
    assert set(data) == {"bench", "version", "quick", "machine", "seconds", "figures"}
    assert set(data["machine"]) == {"cpu", "cores", "isa", "gpu", "load"}
    keys = {"key", "value", "unit", "better", "goal", "ok", "baseline", "samples", "low", "high"}
    assert set(data["figures"][0]) == keys


def test_json_is_all_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(quick: bool) -> list[Figure]:
        print("a library reports")
        return [Figure(key="speed", value=3.0, unit="x", better="higher")]

    module = types.ModuleType("benchmarks.sample")
    module.__dict__["run"] = run
    monkeypatch.setattr(harness, "discover", lambda: {"sample": "A sample."})
    monkeypatch.setitem(sys.modules, "benchmarks.sample", module)
    forge.bench("sample", out=tmp_path, as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["bench"] == "sample"
    assert "a library reports" in printed.err


def test_unknown_benchmark_is_named() -> None:
    with pytest.raises(ConfigError, match="no-such-bench"):
        execute("no-such-bench", quick=True, out=Path("unused"))


def test_an_option_that_a_benchmark_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match="--faults = 5: moo has no such option"):
        execute("moo", quick=True, out=Path("unused"), faults=5, seed=None)
    with pytest.raises(ConfigError, match="--faults = 5: too few for each kind; give 18 or more"):
        execute("chaos", quick=True, out=Path("unused"), faults=5, seed=1)


def test_peak_memory_is_that_of_the_fresh_process() -> None:
    held = bytearray(b"x") * (300 << 20)
    small = peak_rss("operator:neg", 1)
    large = peak_rss("operator:mul", "x", 100 << 20)
    assert small < 100 << 20 < len(held)
    assert 95 << 20 < large - small < 110 << 20


def test_a_failing_measurement_says_why() -> None:
    with pytest.raises(ForgeError, match="ZeroDivisionError"):
        peak_rss("operator:truediv", 1, 0)
