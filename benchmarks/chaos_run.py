"""One run of the pipeline under a plan of faults: carries out from outside what has to come from outside.

The harness looks at the log of faults, sends the signals that processes ask for and wait for, loses nodes, and does
what a person would: `forge resume` after the driver was killed, and again after a stop whose cause is named and gone.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos_cluster import LocalCluster
from benchmarks.harness import FOLDER, progress
from coordinators.status import run_status
from phases.errors import ForgeError
from phases.rundir import finished_phases, read_result
from recovery.faults import OUTSIDE, Fault, FaultLog, Fired, Hit, Kind
from recovery.journal import Event, Journal

INTERVAL = 4  # training steps between checkpoints
CONFIG = (
    "--preset=smoke",
    "--set=cognate.warm_up.steps=24",
    "--set=cognate.training.steps=24",
    f"--set=cognate.warm_up.checkpoint_every={INTERVAL}",
    f"--set=cognate.training.checkpoint_every={INTERVAL}",
    "--set=evomerge.checkpoint_every=1",
    "--set=supervision.pipeline_restarts=20",
    "--set=recovery.uses_per_task={restart: 20, retry: 20}",
    "--set=recovery.per_task=40",
    "--set=recovery.per_run=400",
)
DEFAULT_BUDGETS = ("--set=recovery.uses_per_task={restart: 3, retry: 3}", "--set=recovery.per_task=8")
_POLL = 0.02
_MOST_STOPS = 20


@dataclass(frozen=True)
class Stop:
    """A driver that gave up: what it printed, which faults had fired by then, and whether the run can be read."""

    message: str
    fired: int
    readable: bool


@dataclass
class Outcome:
    """How a run went. `hashes` maps models by role and phase to their SHA-256; `ended` is false where it never did."""

    seconds: float = 0.0
    ended: bool = False
    hashes: dict[str, str] = field(default_factory=dict)
    stops: list[Stop] = field(default_factory=list)
    planned: list[Fault] = field(default_factory=list)
    fired: list[Fired] = field(default_factory=list)
    trace: list[Hit] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


class ChaosRun:
    """A run in `folder`/run with the side folder `folder`/faults, on a cluster of its own."""

    def __init__(self, folder: Path, faults: list[Fault], config: tuple[str, ...] = CONFIG, **cluster: int) -> None:
        self._cluster = cluster  # nodes, and CPUs of each
        self.run, self.config = folder / "run", config
        self.log = FaultLog(folder / "faults")
        self.log.write_plan(str(self.run), faults)
        self._asked = [fault for fault in faults if fault.kind in OUTSIDE]

    def execute(self, limit: float) -> Outcome:
        """Run to the end, for `limit` seconds at most."""
        outcome = Outcome(planned=self.log.plan()[1])
        with LocalCluster(self.log.folder, **self._cluster) as cluster:
            start = time.monotonic()
            self._drive(cluster, outcome, start + limit)
            outcome.seconds = time.monotonic() - start
        outcome.fired, outcome.trace = self.log.fired(), self.log.trace()
        outcome.events = list(Journal(str(self.run)).read())
        outcome.hashes = _hashes(str(self.run))
        return outcome

    def _drive(self, cluster: LocalCluster, outcome: Outcome, deadline: float) -> None:
        driver = self._start("run", *self.config, f"--set=ray.address={cluster.address}", "--run-dir")
        while time.monotonic() < deadline and len(outcome.stops) < _MOST_STOPS:
            self._carry_out(cluster, driver)
            code = driver.poll()
            if code is None:
                time.sleep(_POLL)
                continue
            message = self._output.read_text(errors="replace")
            if code == 0:
                outcome.ended = True
                return
            if code != -signal.SIGKILL:
                stop = Stop(message, len(self.log.fired()), self._is_readable())
                progress(f"  stopped: {message.strip()[-300:]}")
                if outcome.stops and outcome.stops[-1].fired == stop.fired:
                    return  # nothing new was done to it, and it stopped again
                outcome.stops.append(stop)
            driver = self._start("resume", "--address", cluster.address)
        progress(f"  {self.run}: not at its end in time")

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, str(FOLDER.parent / "forge.py"), *arguments, str(self.run)]
        self._output = self.log.folder / f"driver-{time.monotonic_ns()}"
        environment = os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        with self._output.open("wb") as output:
            return subprocess.Popen(
                command, cwd=FOLDER.parent, stdout=subprocess.DEVNULL, stderr=output, env=environment
            )

    def _carry_out(self, cluster: LocalCluster, driver: "subprocess.Popen[bytes]") -> None:
        """Do what processes wait for."""
        happened = (self.log.happened(fault) for fault in self._asked)
        for fired in sorted((item for item in happened if item is not None), key=lambda item: item.time):
            self._asked.remove(fired.fault)
            progress(f"  {fired.fault.kind} at {fired.fault.point.hook} {fired.fault.point.step}")
            self._do(cluster, driver, fired)
            carried = self.log.carried_out(fired.fault)
            carried.parent.mkdir(exist_ok=True)
            carried.touch()

    def _do(self, cluster: LocalCluster, driver: "subprocess.Popen[bytes]", fired: Fired) -> None:
        match fired.fault.kind:
            case Kind.STOP:
                cluster.signal(fired.pid, signal.SIGSTOP)
            case Kind.KILL_PIPELINE:
                for pid in cluster.processes("ray::PipelineCoordinator"):
                    cluster.signal(pid, signal.SIGKILL)
            case Kind.KILL_DRIVER:
                driver.kill()
                driver.wait()
            case Kind.KILL_RAYLET:
                cluster.kill_raylet(fired.pid)
            case Kind.REMOVE_NODE:
                cluster.remove_node(fired.pid)
            case _:
                cluster.signal(fired.pid, signal.SIGKILL)

    def _is_readable(self) -> bool:
        """Say whether what is stored is consistent: a journal whose chain holds, and all that `forge status` reads."""
        try:
            return bool(run_status(str(self.run)))
        except ForgeError:
            return False


def _hashes(run: str) -> dict[str, str]:
    """Return the hash of each model of a run, by role, and of what each phase hands on."""
    found = dict[str, str]()
    for phase in finished_phases(run):
        result = read_result(run, phase)
        found |= {f"{phase}/{role}": ref.sha256 for role, ref in result.models.items()}
        if result.model is not None:
            found[phase] = result.model.sha256
    return found
