"""What Ray and coordination cost: a phase through actors against its functions called one after another.

The phase has one variant, so that both do the same work in the same order. Starting Ray is left out, starting the
agents is not. Waiting is the point here, so times are wall times, and the two take turns. Memory is the largest process
of driver and coordinator, at two model sizes.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Baseline, Figure, progress

_DIRECT = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
import torch
from phases.cognate import phase
from coordinators.config import load_config
from phases.corpus.prepare import prepare
config, run = load_config(sys.argv[1], None, sys.argv[3:]), sys.argv[2]
start, began = datetime.now(UTC), time.monotonic()
cognate, seed = config.cognate, config.seed
prepare(config.corpus, seed=seed, folder=Path(run) / "00_corpus", progress=lambda *_: None)
jobs = [phase.warm_up_job(cognate, config.corpus.vocab_size)]
jobs += [phase.variant_job(cognate, variant, config.corpus.vocab_size) for variant in cognate.variants]
for job in jobs:
    torch.set_num_threads(job.training.threads)
    phase.pretrain(job, run, seed, state=None, save=lambda _: None, on_step=lambda _: None)
for job in jobs[1:]:
    phase.evaluate(run, job.role, cognate, seed)
phase.finish(run, cognate, seed, start)
print(time.monotonic() - began)
"""
_ACTORS = """
import json, os, sys
from datetime import datetime
from pathlib import Path
from coordinators import driver
from coordinators.config import load_config
from recovery.journal import Journal
config, run = load_config(sys.argv[1], None, sys.argv[3:]), sys.argv[2]
peaks = {}
poll = driver._events
def peak_megabytes(process):
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
def watched(pipeline):
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.name == str(os.getpid()) or b"ray::PipelineCoordinator" in (process / "cmdline").read_bytes():
                peaks[process.name] = peak_megabytes(process)
        except (OSError, StopIteration):
            continue  # it ended while we looked
    return poll(pipeline)
driver._events = watched
driver.start_run(config, run, plain=True)
times = {event.kind: datetime.fromisoformat(event.time) for event in Journal(run).read()}
print(json.dumps([(times["phase_finished"] - times["phase_started"]).total_seconds(), max(peaks.values())]))
"""


def run(quick: bool) -> list[Figure]:
    """Measure the share of a nano phase's wall time that is not its own work, and the coordinators' memory."""
    rounds, steps = (1, 60) if quick else (3, 240)
    direct, actors, memory = list[float](), list[float](), list[float]()
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        direct.append(float(_fresh(_DIRECT, "nano", steps)))
        seconds, megabytes = json.loads(_fresh(_ACTORS, "nano", steps))
        actors.append(seconds)
        memory.append(megabytes)
    _, small = json.loads(_fresh(_ACTORS, "smoke", 12))
    shares = [1 - alone / both for alone, both in zip(direct, actors, strict=True)]
    return [
        Figure(
            key="overhead_share",
            value=statistics.median(shares),
            unit="share of the phase's wall time",
            better="lower",
            goal=0.05,
            baseline=Baseline(what="the same functions in turn, s", value=statistics.median(direct)),
            low=min(shares),
            high=max(shares),
            raw={"functions": direct, "actors": actors},
        ),
        Figure(
            key="coordination_memory_ratio",
            value=statistics.median(memory) / small,
            unit="x, nano over smoke",
            better="lower",
            goal=1.1,
            baseline=Baseline(what="largest of driver and coordinator at smoke, MB", value=small),
            raw={"nano": memory, "smoke": [small]},
        ),
    ]


def _fresh(script: str, preset: str, steps: int) -> str:
    """Run a script in a fresh process on a run directory of its own and return the last line that it prints."""
    variants = "[{name: reasoning, halt_threshold: 0.95, memory_capacity: 4096, mix: {text: 0.6, pointer: 0.4}}]"
    overrides = [f"cognate.{part}.steps={steps}" for part in ("warm_up", "training")]
    overrides += [
        "phases=[cognate]",
        f"cognate.variants={variants}",
        "cognate.warm_up.threads=1",
        "tracking.wandb_mode=disabled",
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", script, preset, str(Path(folder) / "run"), *overrides]
        outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    return outcome.stdout.strip().splitlines()[-1]
