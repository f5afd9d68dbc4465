"""The theatre detector's front door: `audit(path)` looks at what lies there and refutes what it can.

A path is a run directory, a model directory or weights file, a report (JSON), a folder of reports, or Python code.
Nothing that is audited is executed: code is only parsed, weights are only read. `audit_apart` does the same in a fresh
process, so that nothing the caller holds in memory can colour the result.
"""

import subprocess
import sys
from pathlib import Path

from phases.baking.validation.code import audit_code
from phases.baking.validation.finding import Report, merge
from phases.baking.validation.model import WEIGHTS, audit_model, is_model_folder
from phases.baking.validation.reports import audit_report
from phases.baking.validation.runs import audit_run, is_run
from phases.errors import ArtifactError

_ROOT = Path(__file__).resolve().parents[3]


def audit(path: str | Path, *, remeasure: bool = True) -> Report:
    """Audit a run, model, report or Python tree. `remeasure` runs the probes of a run's claims again.

    Raises `ArtifactError` where there is nothing at `path`, or nothing that can be audited.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or directory")
    if path.is_file():
        return _audit_file(path)
    if is_run(path):
        return audit_run(path, remeasure=remeasure)
    if is_model_folder(path):
        return audit_model(path)
    if reports := sorted(path.glob("*.json")):
        return merge(str(path), "folder", [audit_report(report) for report in reports])
    if any(path.rglob("*.py")):
        return audit_code(path)
    raise ArtifactError(f"{path}: no run, model, report (JSON) or Python file in it")


def _audit_file(path: Path) -> Report:
    if path.suffix == ".py":
        return audit_code(path)
    if path.suffix == ".json":
        return audit_report(path)
    if path.suffix in WEIGHTS:
        return audit_model(path)
    raise ArtifactError(f"{path}: neither Python, JSON, safetensors nor ONNX")


def audit_apart(path: str | Path, *, remeasure: bool = True, timeout: float = 3600) -> Report:
    """Run `audit` in a fresh process. Raises `ArtifactError` with its last words where that fails."""
    command = [sys.executable, "-m", "phases.baking.validation", str(Path(path).absolute())]
    command += [] if remeasure else ["--no-probes"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode not in (0, 1) or not done.stdout.startswith("{"):
        raise ArtifactError(f"{path}: the audit failed; {done.stderr.strip()[-500:]}")
    return Report.model_validate_json(done.stdout)
