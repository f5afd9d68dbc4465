"""The theatre detector against planted frauds and honest twins, and against code that nobody planted.

Each fraud has a twin built from the same random numbers that differs only in the cheat. A fraud counts as found only
if the test that is meant for it fires; a twin with any finding at all is a false alarm. The baseline is what checking
hashes, sizes and the presence of evidence (T1) finds. Fourteen of the frauds in code are paraphrases written after the
rules: seven of them were missed at first, and made the rules more general.
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import audit_code_cases, audit_model_cases, audit_report_cases
from benchmarks.audit_cases import CASES, Case
from benchmarks.harness import Baseline, Figure, progress
from phases.baking.validation import Finding, audit
from phases.errors import ConfigError
from phases.seeds import child_seed

_ROOT = Path(__file__).resolve().parents[1]
_OWN = ("phases", "recovery", "actors", "coordinators", "serve")
_PUBLIC = ("httpx", "rich", "pydantic", "tenacity", "fsspec")
_CORPUS = (audit_code_cases, audit_model_cases, audit_report_cases)  # importing them registers their cases


def run(quick: bool) -> list[Figure]:
    """Plant every fraud with each seed, and audit our own code and that of packages that we depend on."""
    seeds = range(1 if quick else 5)
    missed, alarms, simple = list[float](), list[float](), list[float]()
    for seed in seeds:
        found = {case.name: _pair(case, seed) for case in CASES}
        missed.append(sum(case.test not in {finding.test for finding in found[case.name][0]} for case in CASES))
        alarms.append(sum(bool(found[case.name][1]) for case in CASES))
        simple.append(sum("T1" not in {finding.test for finding in found[case.name][0]} for case in CASES))
        progress(f"seed {seed}: {missed[-1]:g} of {len(CASES)} frauds missed, {alarms[-1]:g} false alarms")
    baseline = Baseline(what="hashes, sizes and presence of evidence alone (T1): frauds missed", value=max(simple))
    return [
        _count("frauds", len(CASES), "pairs", 40, "higher"),
        _count("frauds_missed", max(missed), "frauds", 0, raw=missed).model_copy(update={"baseline": baseline}),
        _count("false_alarms", max(alarms), "honest twins", 0, raw=alarms),
        _in_code("own_code_findings", [_ROOT / name for name in _OWN], goal=0),
        _in_code("public_code_findings", [_package(name) for name in _PUBLIC[: 2 if quick else None]], goal=None),
    ]


def _pair(case: Case, seed: int) -> tuple[list[Finding], list[Finding]]:
    """Return what the audit found in a fraud and in its twin."""
    found = []
    for fraud in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            rng = np.random.default_rng(child_seed(seed, "audit", case.name))  # the same numbers for both
            found.append(case.subject(Path(folder), rng, fraud))
    for finding in found[1]:
        progress(f"false alarm in the twin of '{case.name}': {finding.test} {finding.where}: {finding.why}")
    if case.test not in {finding.test for finding in found[0]}:
        progress(f"missed: '{case.name}' ({case.test})")
    return found[0], found[1]


def _in_code(key: str, paths: list[Path], goal: float | None) -> Figure:
    """Count findings in code that is not known to cheat: an upper bound of the false alarms there."""
    reports = [audit(path) for path in paths]
    for finding in (finding for report in reports for finding in report.findings):
        progress(f"{finding.path}:{finding.where}: {finding.test} {finding.why}")
    functions = sum(report.checked["functions"] for report in reports)
    figure = _count(key, sum(len(report.findings) for report in reports), f"of {functions} functions", goal)
    return figure.model_copy(
        update={"raw": {path.name: [len(r.findings)] for path, r in zip(paths, reports, strict=True)}}
    )


def _count(
    key: str, value: float, unit: str, goal: float | None, better: str = "lower", raw: list[float] | None = None
) -> Figure:
    return Figure.model_validate(
        {"key": key, "value": value, "unit": unit, "better": better, "goal": goal, "raw": {"seeds": raw or [value]}}
    )


def _package(name: str) -> Path:
    """Return the folder of an installed package without importing it. Raises `ConfigError` where it is missing."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ConfigError.of("benchmark", "audit", f"{name} is not installed", "pip install -e '.[dev]'")
    return Path(spec.origin).parent
