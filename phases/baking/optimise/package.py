"""What optimising leaves behind: the chosen file, how to open it, and a report that others can measure again.

The report's entries carry their samples, the clock and every baseline that was measured beside them, so that
`forge audit` can compute each ratio again.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from phases import storage
from phases.baking.optimise.candidates import Candidate, front
from phases.baking.optimise.inputs import Inputs
from phases.baking.optimise.search import Outcome, Search, is_full_precision
from phases.baking.optimise.session import SessionSettings, node_counts, open_session
from phases.baking.optimise.timing import median
from phases.errors import ArtifactError

MODEL, SESSION, REPORT, FULL = "model.onnx", "session.json", "report.json", "full_precision.onnx"


def write_package(out: Path, outcome: Outcome, search: Search, tokenizer: str | None, inputs: Inputs) -> None:
    """Write the folder `out` at once. Raises `ArtifactError` where it exists already."""
    if out.exists():
        raise ArtifactError(f"{out}: exists already; name a new folder")
    part = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copyfile(outcome.chosen.file, part / MODEL)
    shutil.copyfile(outcome.baseline.file, part / FULL)
    (part / SESSION).write_text(outcome.chosen.settings.model_dump_json(indent=2) + "\n")
    if tokenizer is not None:
        (part / "tokenizer.json").write_text(tokenizer)
    (part / REPORT).write_text(json.dumps(report(outcome, search, part), indent=2) + "\n")
    open_session(part / MODEL, outcome.chosen.settings).run(None, inputs.evaluation[0])  # it answers from here
    part.rename(out)


def report(outcome: Outcome, search: Search, folder: Path) -> dict[str, Any]:
    """Return all that was tried, and claims about what was chosen."""
    chosen, base = outcome.chosen, outcome.baseline
    fulls = {name: median(series) for name, series in outcome.samples.items() if is_full_precision(name)}
    fastest = min(fulls, key=fulls.__getitem__)
    digests = {"after": storage.sha256(str(folder / MODEL)), "before": storage.sha256(str(folder / FULL))}
    common = {"clock": "thread", "load": os.getloadavg()[0], "files": {"after": MODEL, "before": FULL}}
    samples = {name: outcome.samples[name] for name in dict.fromkeys((chosen.name, *fulls))}
    claims: list[dict[str, Any]] = []
    if chosen.name != base.name:
        latency = {"key": "latency_ratio", "value": chosen.speed, "low": chosen.speed_low, "high": chosen.speed_high}
        latency |= {"candidate": chosen.name, "baseline": fastest, "alternatives": fulls, "samples": samples}
        size = {"key": "size_ratio", "value": base.bytes / chosen.bytes, "before": base.bytes, "after": chosen.bytes}
        claims = [latency | {"unit": "x", "n": len(chosen.samples)}, size | {"unit": "x"}]
    return {
        "target": search.target,
        "max_loss": search.max_loss,
        "chosen": chosen.name,
        "fastest_full_precision": fastest,
        "sha256": digests,
        "claims": [claim | common for claim in claims],
        "front": [candidate.name for candidate in front(outcome.candidates)],
        "candidates": [candidate.model_dump(mode="json", exclude={"samples"}) for candidate in outcome.candidates],
        "ablation": {
            name: {
                "seconds": found.seconds,
                "harmful": list(found.harmful),
                "gain_without": {passed: [r.value, r.low, r.high] for passed, r in found.gains.items()},
            }
            for name, found in outcome.ablations.items()
        },
        "nodes": {"before": node_counts(folder / FULL), "after": node_counts(folder / MODEL)},
        "failed": outcome.failed,
    }


def open_package(folder: Path) -> tuple[Path, SessionSettings]:
    """Return the file and the settings of a package. Raises `ArtifactError` where it is none, or was altered."""
    try:
        written = json.loads((folder / REPORT).read_text())
        settings = SessionSettings.model_validate_json((folder / SESSION).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: no package of `forge optimize` ({error})") from error
    if storage.sha256(str(folder / MODEL)) != written["sha256"]["after"]:
        raise ArtifactError(f"{folder / MODEL}: not the file that the report is about")
    return folder / MODEL, settings


def shown(candidate: Candidate) -> tuple[str, ...]:
    """Return a candidate's line for a table."""
    return (
        candidate.name,
        f"{1e3 * candidate.seconds:.3g}",
        f"{candidate.speed:.2f} ({candidate.speed_low:.2f}-{candidate.speed_high:.2f})",
        f"{candidate.bytes / 1e6:.2f}",
        f"{candidate.memory / 1e6:.1f}",
        f"{candidate.cosine:.4f}",
    )
