"""Phase 6 after baking: the model's file, what the runtime makes of it, candidates, memory, timing and the package.

One function for each agent's work, on files in the run's `06_baking/optimise/`; a remote run is worked on in a
temporary folder. Numbers are measured, and what does not hold is named in the evidence as rejected.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from phases import storage
from phases.baking.evidence import FOLDER, Evidence, digests, keep
from phases.baking.optimise.ablation import ablate
from phases.baking.optimise.machine import probe
from phases.baking.optimise.memory import peak_bytes
from phases.baking.optimise.package import MODEL as FILE
from phases.baking.optimise.package import REPORT, open_package, write_package
from phases.baking.optimise.quality import agreement, outputs
from phases.baking.optimise.search import Outcome, Search, compared, transformed
from phases.baking.optimise.session import SessionSettings, node_counts, open_session
from phases.baking.optimise.sources import Source, titan_source
from phases.baking.phase import MODEL, Order
from phases.errors import ArtifactError
from phases.timing import interleaved

PACKAGE, WORK = f"{FOLDER}/optimised", f"{FOLDER}/optimise"
_ROOT = Path(__file__).resolve().parents[2]
_FEEDS = 3
_SAME = 1e-4  # loss that the runtime's own optimisations may have
# Runs the file with nothing of ours but the runtime, from another folder.
_SMOKE = """
import json, sys, time
import numpy as np, onnxruntime as ort
start = time.perf_counter()
options = ort.SessionOptions()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = dict(np.load(sys.argv[2]))
found = session.run(None, feeds)
np.savez(sys.argv[3], *found)
print(json.dumps({"cold_start_seconds": time.perf_counter() - start}))
"""


@contextmanager
def working(order: Order) -> Iterator[Path]:
    """Yield the local folder of the files under work."""
    if storage.is_local(order.run):
        folder = Path(order.path(WORK).removeprefix("file://"))
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with TemporaryDirectory() as temporary:
        if storage.exists(order.path(WORK)):
            shutil.copytree(storage.local_folder(order.path(WORK)), temporary, dirs_exist_ok=True)
        yield Path(temporary)
        storage.upload_folder(Path(temporary), order.path(WORK))


def adapt(order: Order) -> Evidence:
    """Find out what this machine can do (HardwareAdapter)."""
    machine = probe()
    measured = machine.model_dump(mode="json", exclude={"providers_not_run"})
    evidence = Evidence(
        agent="HardwareAdapter",
        step="AgentInitialization",
        work="probe",
        measured=measured,
        rejected=dict(machine.providers_not_run),
    )
    return keep(order.run, evidence)


def optimise_graph(order: Order) -> Evidence:
    """Export the model and find out which of the runtime's passes help (GraphOptimizer)."""
    with working(order) as folder:
        source = _source(order, folder)
        found = ablate(source.file, source.inputs.evaluation[0], order.config.optimisation.rounds)
        feeds = source.inputs.evaluation
        plain = outputs(open_session(source.file, SessionSettings(level="off")), feeds)
        close = agreement(plain, outputs(open_session(source.file, found.settings), feeds))
        optimised = folder / "as_optimised.onnx"
        open_session(source.file, found.settings, optimised)
        measured = {
            "nodes_before": dict(node_counts(source.file)),
            "nodes_after": dict(node_counts(optimised)),
            "seconds": found.seconds,
            "fastest": found.fastest,
            "gain_without": {name: [r.value, r.low, r.high] for name, r in found.gains.items()},
            "smallest_cosine": close.smallest,
        }
    slow = {name: f"{gain.value:.3f} times as fast without" for name, gain in found.gains.items() if gain.faster}
    rejected = slow | dict.fromkeys(found.broken, "the file does not run with it")
    if close.loss > _SAME:
        rejected[found.fastest] = f"another answer: cosine {close.smallest:.6f}"
    return keep(
        order.run,
        Evidence(agent="GraphOptimizer", step="Optimization", work="ablate", measured=measured, rejected=rejected),
    )


def transform(order: Order) -> Evidence:
    """Make the candidates' files (ModelOptimizer). One that is no smaller is rejected."""
    with working(order) as folder:
        source = _source(order, folder)
        files, failed = transformed(source.file, folder, source.inputs, Search())
        sizes = {name: file.stat().st_size for name, file in files.items()}
    rejected = failed | {
        name: f"{size} bytes, {sizes['fp32']} before" for name, size in sizes.items() if size > sizes["fp32"]
    }
    evidence = Evidence(
        agent="ModelOptimizer", step="Optimization", work="transform", measured={"bytes": sizes}, rejected=rejected
    )
    return keep(order.run, evidence)


def accelerate(order: Order) -> Outcome:
    """Time and compare all candidates and choose (InferenceAccelerator). What does not win is rejected."""
    config = order.config.optimisation
    with working(order) as folder:
        source = _source(order, folder)
        names = [name for name in Search().transforms if (folder / f"{name}.onnx").exists()]
        files = {"fp32": source.file} | {name: folder / f"{name}.onnx" for name in names}
        search = Search(config.target, config.max_loss, config.rounds, eager=source.eager)
        outcome = compared(files, {}, source.inputs, search)
        package = folder / "package"
        shutil.rmtree(package, ignore_errors=True)
        write_package(package, outcome, search, source.tokenizer, source.inputs)
        measured = json.loads((package / REPORT).read_text())
    rejected = {candidate.name: candidate.dropped for candidate in outcome.candidates if candidate.dropped}
    chosen = {"chosen": outcome.chosen.model_dump(mode="json", exclude={"samples"}), "front": measured["front"]}
    keep(
        order.run,
        Evidence(agent="InferenceAccelerator", step="Optimization", work="compare", measured=chosen, rejected=rejected),
    )
    return outcome


def save_memory(order: Order) -> Evidence:
    """Measure what settings of memory are worth for the chosen file (MemoryOptimizer)."""
    with working(order) as folder:
        source = _source(order, folder)
        path, settings = open_package(folder / "package")
        tried = {
            "as chosen": settings,
            "no arena": settings.model_copy(update={"arena": False}),
            "no prepacking": settings.model_copy(update={"prepack": False}),
        }
        feeds = source.inputs.evaluation[0]
        peaks = {name: [peak_bytes(path, given, feeds) for _ in range(3)] for name, given in tried.items()}
    least = min(peaks["as chosen"])
    rejected = {name: "no lower than as chosen" for name in list(tried)[1:] if max(peaks[name]) >= least}
    measured = {"peak_bytes": peaks}
    evidence = Evidence(
        agent="MemoryOptimizer", step="Optimization", work="measure", measured=measured, rejected=rejected
    )
    return keep(order.run, evidence)


def profile(order: Order) -> Evidence:
    """Time the chosen file by itself, over lengths, with percentiles (PerformanceProfiler)."""
    config = order.config.optimisation
    with working(order) as folder:
        path, settings = open_package(folder / "package")
        session = open_session(path, settings)
        lengths = sorted({1, config.tokens, 2 * config.tokens})
        calls = {}
        for tokens in lengths:
            feeds = _source(order, folder, tokens).inputs.evaluation[0]
            calls[str(tokens)] = lambda feeds=feeds: session.run(None, feeds)
        samples = interleaved(calls, 10 * config.rounds)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    measured: dict[str, Any] = {"clock": "thread", "load": load, "n": 10 * config.rounds, "ms": {}}
    for length, series in samples.items():
        p50, p95, p99 = (1e3 * float(np.percentile(series, q)) for q in (50, 95, 99))
        measured["ms"][length] = {"p50": p50, "p95": p95, "p99": p99, "tokens_per_second": 1e3 * int(length) / p50}
    rejected = {"timing": f"load {load:.1f} on {cores} cores"} if load > 4 * cores else {}
    evidence = Evidence(
        agent="PerformanceProfiler", step="Optimization", work="profile", measured=measured, rejected=rejected
    )
    return keep(order.run, evidence)


def prepare(order: Order) -> Evidence:
    """Put the package where it belongs and have it answer by itself (DeploymentPreparer).

    Raises `ArtifactError` where it cannot answer, or answers otherwise than it did.
    """
    with working(order) as folder, TemporaryDirectory() as elsewhere:
        source, package = _source(order, folder), folder / "package"
        path, settings = open_package(package)
        feeds = source.inputs.evaluation[0]
        here = Path(elsewhere)
        shutil.copyfile(path, here / FILE)
        np.savez(here / "feeds.npz", **feeds)  # type: ignore[arg-type]  # the stubs know no ** of arrays
        command = [sys.executable, "-I", "-c", _SMOKE, FILE, "feeds.npz", "found.npz"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ArtifactError(f"{package}: cannot answer by itself; {done.stderr.strip()[-400:]}")
        answered = list(np.load(here / "found.npz").values())
        close = agreement([outputs(open_session(path, settings), [feeds])[0]], [answered])
        if close.loss > order.config.optimisation.max_loss:
            raise ArtifactError(f"{package}: answers otherwise by itself (cosine {close.smallest:.4f})")
        storage.upload_folder(package, order.path(PACKAGE))
    names = [f"{PACKAGE}/{name}" for name in storage.names(order.path(PACKAGE))]
    measured = json.loads(done.stdout) | {"bytes": {name: os.path.getsize(package / Path(name).name) for name in names}}
    evidence = Evidence(
        agent="DeploymentPreparer",
        step="Phase7Preparation",
        work="package",
        measured=measured | {"smallest_cosine": close.smallest},
        files=digests(order.run, *names),
    )
    return keep(order.run, evidence)


def _source(order: Order, folder: Path, tokens: int | None = None) -> Source:
    """Return the exported model with its feeds, the same each time."""
    tokens = tokens or order.config.optimisation.tokens
    return titan_source(order.path(MODEL), folder, tokens=tokens, count=_FEEDS, seed=order.seed)
