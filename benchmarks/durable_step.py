"""Durable steps: what one costs against a bare fdatasync, and steps a second against dbos on SQLite.

A step is what a phase does around a task: an epoch is granted, its start noted in the journal, its result committed
where the store refuses stale attempts, its end noted. Steps follow one another; each is durable before the next begins,
and the journal's groups are written beside them. The baseline appends as many bytes to a file and calls fdatasync.
dbos runs a workflow of as many steps, in a virtual environment of its own, on SQLite at synchronous=FULL: as it ships,
with a rollback journal, and tuned to a write-ahead log. Wall time, since waiting for the disk is the point, in turns.
"""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import RESULTS, Baseline, Figure, progress
from benchmarks.peers import environment_of
from phases.errors import ForgeError
from phases.timing import bootstrap
from recovery.commits import Commits
from recovery.inputs import input_hash
from recovery.journal import Journal

_ARGUMENTS = {"steps": 1000, "learning_rate": 3e-4, "role": "reasoning"}
_OURS, _FDATASYNC, _DBOS, _DBOS_WAL = "durable steps", "append and fdatasync", "dbos as it ships", "dbos with a WAL"
_MODES = {_DBOS: "delete", _DBOS_WAL: "wal"}

# Runs in the peer's environment: for each number read, a workflow of so many steps; the answer is its seconds.
_PEER = """
import json, logging, sqlite3, sys, time
from dbos import DBOS
from dbos._dbos import _get_dbos_instance
path, mode = sys.argv[1:]
logging.disable(logging.CRITICAL)
sqlite3.connect(path).execute("PRAGMA journal_mode=" + mode)  # WAL stays with the file
DBOS(config={"name": "peer", "system_database_url": "sqlite:///" + path, "run_admin_server": False})

@DBOS.step()
def step(number):
    return {"step": number}

@DBOS.workflow()
def work(steps):
    return [step(number)["step"] for number in range(steps)]

DBOS.launch()
with _get_dbos_instance()._sys_db.engine.connect() as connection:
    pragmas = [connection.exec_driver_sql("PRAGMA " + name).scalar() for name in ("journal_mode", "synchronous")]
print(json.dumps(pragmas), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    assert work(int(line)) == list(range(int(line)))
    print(time.perf_counter() - start, flush=True)
DBOS.destroy()
"""


def run(quick: bool) -> list[Figure]:
    """Measure `step_cost_ratio`, `block_cost_ratio`, `vs_dbos` and `vs_dbos_wal`; dbos only if it can be installed."""
    blocks, steps = (5, 10) if quick else (21, 25)
    RESULTS.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=RESULTS) as folder:
        figures = _step_cost(Path(folder), blocks, steps)
        try:
            python = environment_of("dbos", ("dbos>=3.4,<4",))
        except (OSError, ForgeError) as error:
            progress(f"skipped: vs_dbos, since dbos cannot be installed ({error})")
            return figures
        return figures + _against_dbos(Path(folder), python, 3 if quick else 9, 2 * steps)


class Steps:
    """Does durable steps in a run directory, as a phase does, one after the other."""

    def __init__(self, run: Path) -> None:
        self.run, self.count = run, 0
        self._commits, self._journal = Commits(str(run)), Journal(str(run), epoch=1)
        self._inputs = input_hash(_ARGUMENTS)

    def do(self, steps: int) -> list[float]:
        """Do so many steps; return the seconds of each, and last those until the journal has them all."""
        seconds = [_timed(lambda: self._step(f"task {self.count}")) for _ in range(steps)]
        return [*seconds, _timed(self._journal.flush)]

    def check(self) -> None:
        """Assert that all of it is there, for somebody who reads it from the disk."""
        commits = Commits(str(self.run))
        for number in range(self.count):
            entry = commits.committed(f"bench/task {number}", self._inputs)
            assert entry is not None, f"step {number} is lost"
            assert entry["result"] == {"step": f"task {number}"}
        assert len(Journal(str(self.run)).read("task_finished")) == self.count

    def bytes_per_step(self) -> int:
        """Return how many bytes of files a step leaves."""
        sizes = (file.stat().st_size for file in self.run.rglob("*") if file.is_file())
        return sum(sizes) // self.count

    def _step(self, task: str) -> None:
        epoch = self._commits.begin(f"bench/{task}")
        self._journal.note("task_started", phase="bench", task=task, agent="bench")
        self._commits.commit(f"bench/{task}", epoch, {"step": task}, self._inputs)
        self._journal.note("task_finished", phase="bench", task=task, agent="bench")
        self.count += 1


def _step_cost(folder: Path, blocks: int, steps: int) -> list[Figure]:
    """Compare steps with as many appended and flushed records of as many bytes: one with one, and all with all."""
    ours = Steps(folder / "run")
    ours.do(steps)
    record = os.urandom(ours.bytes_per_step())
    descriptor = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def append() -> None:
        os.write(descriptor, record)
        os.fdatasync(descriptor)

    taken = _in_turns(
        {_OURS: lambda: ours.do(steps), _FDATASYNC: lambda: [_timed(append) for _ in range(steps)]}, blocks
    )
    os.close(descriptor)
    ours.check()
    return [
        _cost("step_cost_ratio", "x, p50 of a step over p50 of a flush", statistics.median, taken, 1.2, len(record)),
        _cost("block_cost_ratio", "x, with the journal's groups", sum, taken, None, len(record)),
    ]


def _cost(
    key: str,
    unit: str,
    statistic: Callable[[list[float]], float],
    taken: dict[str, list[list[float]]],
    goal: float | None,
    size: int,
) -> Figure:
    """Return the median over blocks of the ratio of a statistic of each."""
    series = {name: [statistic(block) for block in blocks] for name, blocks in taken.items()}
    ratios = [mine / bare for mine, bare in zip(series[_OURS], series[_FDATASYNC], strict=True)]
    low, high = bootstrap(ratios)
    return Figure(
        key=key,
        value=statistics.median(ratios),
        unit=unit,
        better="lower",
        goal=goal,
        baseline=Baseline(what=f"append {size} bytes and fdatasync, s", value=statistics.median(series[_FDATASYNC])),
        low=low,
        high=high,
        raw={f"{name}, s": values for name, values in series.items()},
    )


def _against_dbos(folder: Path, python: Path, rounds: int, steps: int) -> list[Figure]:
    ours = Steps(folder / "against")
    with ExitStack() as stack:
        workers: dict[str, Callable[[], list[float]]] = {_OURS: lambda: ours.do(steps)}
        durability = dict[str, str]()
        for name, mode in _MODES.items():
            peer = stack.enter_context(_Peer(python, folder / f"{mode}.sqlite", mode))
            durability[name] = f"journal_mode={peer.pragmas[0]}, synchronous={peer.pragmas[1]}"
            workers[name] = lambda peer=peer: [peer.do(steps)]  # type: ignore[misc]
        taken = _in_turns(workers, rounds)
        seconds = {name: [sum(block) for block in blocks] for name, blocks in taken.items()}
    ours.check()
    figures = []
    for key, name, goal in (("vs_dbos", _DBOS, 3.0), ("vs_dbos_wal", _DBOS_WAL, None)):
        ratios = [theirs / mine for theirs, mine in zip(seconds[name], seconds[_OURS], strict=True)]
        low, high = bootstrap(ratios)
        figures.append(
            Figure(
                key=key,
                value=statistics.median(ratios),
                unit="x, durable steps a second",
                better="higher",
                goal=goal,
                baseline=Baseline(
                    what=f"{name} ({durability[name]}), steps/s", value=steps / statistics.median(seconds[name])
                ),
                low=low,
                high=high,
                raw={f"{which}, seconds per {steps}": seconds[which] for which in (_OURS, name)},
            )
        )
    return figures


def _timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _in_turns(workers: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[list[float]]]:
    """Return the blocks of seconds that each worker reports, in turns, in reverse every other time; one warms up."""
    taken: dict[str, list[list[float]]] = {name: [] for name in workers}
    for number in range(rounds + 1):
        for name in list(workers)[:: 1 if number % 2 else -1]:
            block = workers[name]()
            if number:
                taken[name].append(block)
        if number:
            latest = "  ".join(f"{name} {sum(blocks[-1]):.3f} s" for name, blocks in taken.items())
            progress(f"round {number}/{rounds}: {latest}")
    return taken


class _Peer:
    """dbos in a process of its own. `pragmas` are those that its own connections have."""

    def __init__(self, python: Path, database: Path, mode: str) -> None:
        command = [str(python), "-c", _PEER, str(database), mode]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pragmas: list[str | int] = json.loads(self._answer())
        if self.pragmas != [mode, 2]:
            raise ForgeError(f"dbos runs SQLite with {self.pragmas}, which is not the durability that is compared")

    def do(self, steps: int) -> float:
        """Run a workflow and return its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def __enter__(self) -> "_Peer":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ForgeError(f"dbos ended with exit code {self._process.wait(20)}")
        return line
