"""The search under faults: killed at random moments, and with evaluators that throw, return NaN or die.

Run as a program (`python -m benchmarks.evomerge_faults RUN SEED WORKERS`) it is one search on Ray, which is what gets
killed. Every evaluation that is really made leaves a line, so that those made twice can be counted.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from actors.evomerge import MergeEvaluator, evolve
from benchmarks.evomerge_search import specialists
from benchmarks.harness import FOLDER, Baseline, Figure, local_ray, progress
from phases.evomerge import phase
from phases.evomerge.config import EvoMergeConfig
from phases.evomerge.fitness import Measured
from phases.evomerge.search import read_search
from phases.evomerge.space import Genome
from phases.probes import RunFiles

_LOG = "evaluations.log"
_STORE_BYTES = 160 << 20  # of Ray's object store
_FAULTS = 0.3  # share of evaluations that fail, a third of them each way


class CountedEvaluator(MergeEvaluator):
    """Notes each evaluation that the ledger does not have."""

    def measure(self, expressed: Genome) -> Measured:
        key = self.evaluator.key(expressed)
        if self.ledger.get(key) is None:
            with Path(self.ledger.folder, "..", _LOG).open("a") as file:
                file.write(f"{key}\n")
        return super().measure(expressed)


class FaultyEvaluator(MergeEvaluator):
    """Fails as often as not, at random."""

    def __init__(self, arrays: Mapping[str, Any], evaluator: Mapping[str, Any], ledger: str) -> None:
        super().__init__(arrays, evaluator, ledger)
        self.random = random.Random(os.getpid())

    def measure(self, expressed: Genome) -> Measured:
        if self.random.random() < _FAULTS:
            kind = self.random.randrange(3)
            if kind == 0:
                raise OSError("injected")
            if kind == 1:
                return Measured(float("nan"), 0.0, 1.0, 1.0)
            os._exit(1)
        return super().measure(expressed)


def fault_figures(quick: bool) -> list[Figure]:
    """Return `resume_identical`, `repeated_evaluations` and `faulty_same_winner`."""
    return [*_killed(2 if quick else 10), _faulty(1 if quick else 5)]


def _config(workers: int) -> EvoMergeConfig:
    return EvoMergeConfig.model_validate(
        {
            "evolution": {"generations": 8, "patience": None},
            "data": {"text_tokens": 512, "streams": 8, "task_instances": 4},
            "finals": {"entrants": 4, "data": {"text_tokens": 1024, "streams": 8, "task_instances": 8}},
            "workers": workers,
            "checkpoint_every": 2,
        }
    )


def _killed(count: int) -> list[Figure]:
    """Kill searches after random numbers of evaluations, let them finish, and compare with one that ran through."""
    with TemporaryDirectory() as folder:
        undisturbed = _fresh(folder, "undisturbed")
        expected = _finished(undisturbed, workers=2)
        total = len(_evaluations(undisturbed))
        rng, same, repeated = random.Random(0), [], []
        for number in range(count):
            run, workers = _fresh(folder, str(number)), 1 + number % 2
            process = _start(run, workers)
            moment = rng.randrange(1, total)
            while len(_evaluations(run)) < moment and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            done = len(_evaluations(run))
            same.append(float(_finished(run, workers) == expected))
            evaluations = _evaluations(run)
            repeated.append(float(len(evaluations) - len(set(evaluations)) - workers))
            progress(f"kill {number + 1}/{count}: after {done} evaluations, same {same[-1]:.0f}, {repeated[-1]:+.0f}")
    identical = Figure(
        key="resume_identical",
        value=sum(same),
        unit=f"of {count} killed searches",
        better="higher",
        goal=count,
        raw={"same": same},
    )
    excess = Figure(
        key="repeated_evaluations",
        value=max(repeated),
        unit="most made twice, beyond the workers in flight",
        better="lower",
        goal=0,
        raw={"excess": repeated},
    )
    return [identical, excess]


def _fresh(folder: str, name: str) -> Path:
    source, target = specialists(), Path(folder, name)
    for part in ("00_corpus", "01_cognate"):
        shutil.copytree(source / part, target / part)
    return target


def _start(run: Path, workers: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "benchmarks.evomerge_faults", str(run), "0", str(workers)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=FOLDER.parent, stdout=quiet, stderr=quiet)


def _finished(run: Path, workers: int) -> str:
    """Let a search run to its end and return the hash of the winner's model."""
    if _start(run, workers).wait() != 0:
        return "failed"
    ref = phase.write_winner(RunFiles(str(run)), _config(workers), 0, _winner(run))
    return ref.sha256


def _winner(run: Path) -> dict[str, Any]:
    found = read_search(str(run))
    assert found is not None
    genome: dict[str, Any] = found["genome"]
    return genome


def _evaluations(run: Path) -> list[str]:
    log = run / "02_evomerge" / _LOG
    return log.read_text().split() if log.exists() else []


def _faulty(count: int) -> Figure:
    """Search with and without faults and compare the winners."""
    same = []
    with local_ray(2, _STORE_BYTES), TemporaryDirectory() as folder:
        for seed in range(count):
            runs = [_fresh(folder, f"{seed}-{kind}") for kind in ("sound", "faulty")]
            for run, worker in zip(runs, (MergeEvaluator, FaultyEvaluator), strict=True):
                evolve(RunFiles(str(run)), _config(2), seed, cpus=1, gpus=0, worker=worker)
            same.append(float(_winner(runs[0]) == _winner(runs[1])))
            progress(f"faults, seed {seed}: same winner {same[-1]:.0f}")
    return Figure(
        key="faulty_same_winner",
        value=sum(same),
        unit=f"of {count} seeds",
        better="higher",
        goal=count,
        baseline=Baseline(what="share of evaluations that fail", value=_FAULTS),
        raw={"same": same},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with local_ray(2, _STORE_BYTES):
        evolve(
            RunFiles(sys.argv[1]), _config(int(sys.argv[3])), int(sys.argv[2]), cpus=1, gpus=0, worker=CountedEvaluator
        )
