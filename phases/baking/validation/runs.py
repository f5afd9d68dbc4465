"""Audit of a run directory: each model in it, each claim measured again by its probe, and each report it wrote."""

from collections.abc import Iterator
from pathlib import Path

from phases import rundir
from phases.baking.validation.finding import Finding, Report, merge
from phases.baking.validation.model import audit_model
from phases.baking.validation.reports import audit_report
from phases.contract import Claim, PhaseResult
from phases.errors import ForgeError
from phases.probes import RunFiles, measure


def is_run(path: Path) -> bool:
    """Say whether a folder is a run directory."""
    return (path / "config.yaml").is_file() and (path / "journal").is_dir()


def audit_run(path: Path, *, remeasure: bool = True) -> Report:
    """Audit the models, claims and logs of a run. `remeasure` runs each claim's probe again, which takes as long as
    `forge verify` does."""
    parts = list[Report]()
    files = RunFiles(str(path))
    for phase in rundir.finished_phases(str(path)):
        result = rundir.read_result(str(path), phase)
        parts.extend(_audit_models(path, result))
        parts.append(audit_report(path / rundir.result_path(phase)))
        if remeasure:
            found = [finding for claim in result.claims for finding in _measure_again(files, claim, phase)]
            claims = {"claims measured again": len(result.claims)}
            parts.append(Report(path=phase, kind="run", checked=claims, findings=tuple(found)))
    for name in ("baking_summary.json", "error_recovery_log.json"):
        parts.extend(audit_report(report) for report in sorted(path.glob(f"*/{name}")))
    return merge(str(path), "run", parts)


def _audit_models(path: Path, result: PhaseResult) -> Iterator[Report]:
    for reference in {ref.uri: ref for ref in (result.model, *result.models.values()) if ref is not None}.values():
        yield audit_model(path / reference.uri)


def _measure_again(files: RunFiles, claim: Claim, phase: str) -> Iterator[Finding]:
    try:
        measured = measure(files, claim.probe).value
    except ForgeError as error:
        yield Finding(test="T1", path=rundir.result_path(phase), where=claim.key, claimed=claim.value, why=str(error))
        return
    if abs(measured - claim.value) > claim.tolerance:
        why = f"its probe {claim.probe.name} gives another number"
        yield Finding(
            test="T7",
            path=rundir.result_path(phase),
            where=claim.key,
            claimed=claim.value,
            measured=measured,
            why=why,
        )
