"""`forge verify`: measure every claim of a run again, from its files alone.

Four things are checked: the journal is whole (a damaged end is what a crash leaves), each `result.json` is the one
whose hash the journal recorded, each file of each model has the hash that its lineage recorded, and each claim's probe
gives the claimed value within the claim's tolerance.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import yaml
from pydantic import BaseModel

from phases import modeldir, rundir, storage
from phases.contract import Claim, ModelRef, PhaseResult
from phases.errors import ArtifactError, ForgeError
from phases.probes import RunFiles, measure
from recovery.journal import Journal


class Finding(BaseModel):
    """One thing that was checked."""

    subject: str
    ok: bool
    claimed: float | None = None
    measured: float | None = None
    tolerance: float | None = None
    problem: str | None = None


def verify(run: str) -> Iterator[Finding]:
    """Yield a finding per result file, model and claim. Raises `ArtifactError` where the run has no result at all."""
    phases = rundir.finished_phases(run)
    events, damage = Journal(run).scan()
    if damage is not None:
        yield Finding(subject="journal", ok=not damage.tampered, problem=damage.problem)
    recorded = {event.data["phase"]: event.data["result_sha256"] for event in events if event.kind == "phase_finished"}
    phases = [phase for phase in rundir.PHASES if phase in phases or phase in recorded]
    if not phases:
        raise ArtifactError(f"{run}: no finished phase to verify; `forge status {run}` tells how far the run is")
    config = yaml.safe_load(storage.read_bytes(storage.join(run, "config.yaml")))
    torch.set_num_threads(config["cognate"]["training"]["threads"])  # as the run had: sums depend on it
    files = RunFiles(run)
    for phase in phases:
        path = storage.join(run, rundir.result_path(phase))
        yield _check(path, partial(_check_seal, path, recorded.get(phase)))
        try:
            result = rundir.read_result(run, phase)
        except ArtifactError as error:
            yield Finding(subject=path, ok=False, problem=str(error))
            continue
        yield from _verify_models(files, result)
        for claim in result.claims:
            yield _verify_claim(files, claim)


def _verify_models(files: RunFiles, result: PhaseResult) -> Iterator[Finding]:
    references = {ref.uri: ref for ref in (result.model, *result.models.values()) if ref is not None}
    for uri, ref in references.items():
        yield _check(f"model {uri}", partial(_check_model, files, ref))


def _check_model(files: RunFiles, ref: ModelRef) -> None:
    found = modeldir.open_ref(files.path(ref.uri), ref.sha256)
    if found.parameters != ref.parameters:
        raise ArtifactError(f"result.json says {ref.parameters} parameters, the model has {found.parameters}")


def _check_seal(path: str, recorded: object) -> None:
    if recorded is None:
        raise ArtifactError(f"{path}: the journal has no record of this result")
    if storage.sha256(path) != recorded:
        raise ArtifactError(f"{path}: altered after the run (its hash is not the one in the journal)")


def _verify_claim(files: RunFiles, claim: Claim) -> Finding:
    finding = Finding(subject=claim.key, ok=False, claimed=claim.value, tolerance=claim.tolerance)
    try:
        measured = measure(files, claim.probe).value
    except ForgeError as error:
        return finding.model_copy(update={"problem": str(error)})
    ok = abs(measured - claim.value) <= claim.tolerance
    problem = None if ok else f"claimed {claim.value:g}, measured {measured:g}"
    return finding.model_copy(update={"ok": ok, "measured": measured, "problem": problem})


def _check(subject: str, check: Callable[[], None]) -> Finding:
    try:
        check()
    except ForgeError as error:
        return Finding(subject=subject, ok=False, problem=str(error))
    return Finding(subject=subject, ok=True)
