"""How benchmarks are found, run, timed and reported.

A benchmark is a module `benchmarks/<name>.py` whose docstring's first line is its summary and which has
`run(quick: bool, ...) -> list[Figure]`. Compute is timed in CPU seconds, so that other load on the machine counts less,
with candidates and baselines taking turns, so that what load does reach them reaches them alike. Peak memory is read in
a fresh process each time. Raw samples are written beside the report; nothing here knows what is being measured.
"""

import ast
import importlib
import inspect
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, computed_field

from phases import storage
from phases.errors import ConfigError, ForgeError
from phases.timing import Samples, bootstrap, interleaved
from phases.version import code_version

_T = TypeVar("_T")
FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER.parent / "bench-results"  # on a disk, where /tmp may be memory
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Baseline(_Frozen):
    """What a figure is compared with, measured in the same run, in the unit that `what` names."""

    what: str
    value: float = Field(allow_inf_nan=False)


class Figure(_Frozen):
    """One measured number. `raw` holds the samples it summarises; they go to the samples file, not into the report."""

    key: str
    value: float = Field(allow_inf_nan=False)
    unit: str
    better: Literal["higher", "lower"]
    goal: float | None = None
    baseline: Baseline | None = None
    low: float | None = Field(default=None, description="lower end of the 95% interval")
    high: float | None = Field(default=None, description="upper end of the 95% interval")
    raw: dict[str, list[float]] = Field(default_factory=dict, exclude=True)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def samples(self) -> int:
        """The number of raw samples of the longest series."""
        return max((len(series) for series in self.raw.values()), default=0)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool | None:
        """Whether the value reaches the goal; None without a goal."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.better == "higher" else self.value <= self.goal


class Machine(_Frozen):
    """Where it was measured. `load` is the 1-minute average when the benchmark started."""

    cpu: str
    cores: int
    isa: tuple[str, ...]
    gpu: str | None
    load: float


class Report(_Frozen):
    """What `forge bench NAME --json` prints."""

    bench: str
    version: str
    quick: bool
    machine: Machine
    seconds: float
    figures: tuple[Figure, ...]

    @property
    def ok(self) -> bool:
        """Whether no figure falls short of its goal."""
        return all(figure.ok is not False for figure in self.figures)


def discover() -> dict[str, str]:
    """Return name -> summary of each benchmark, read from the sources without importing them."""
    found = {}
    for file in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(file.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def execute(name: str, *, quick: bool, out: Path, **options: int | None) -> Report:
    """Run a benchmark and write its raw samples to `out/NAME-samples.json`.

    `options` that are not None go to its `run`. Raises `ConfigError` for an unknown benchmark, or option of it.
    """
    if name not in (known := discover()):
        raise ConfigError.of("benchmark", name, "not known", f"choose one of {', '.join(known)}")
    run, given = importlib.import_module(f"benchmarks.{name}").run, {k: v for k, v in options.items() if v is not None}
    for option in given.keys() - inspect.signature(run).parameters.keys():
        raise ConfigError.of(f"--{option}", given[option], f"{name} has no such option", "leave it out")
    where, start = machine(), time.perf_counter()
    figures: list[Figure] = run(quick, **given)
    seconds = time.perf_counter() - start
    samples = {figure.key: figure.raw for figure in figures}
    storage.write_json(str(out.absolute() / f"{name}-samples.json"), samples)
    return Report(
        bench=name, version=code_version(), quick=quick, machine=where, seconds=seconds, figures=tuple(figures)
    )


def machine() -> Machine:
    """Describe this machine."""
    import torch

    info = _cpu_info()
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        isa=tuple(flag for flag in _ISA if flag in (info.get("flags") or info.get("Features") or "").split()),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        load=os.getloadavg()[0],
    )


def _cpu_info() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def progress(message: str) -> None:
    """Show a line on stderr, where it does not mix with the report."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set torch's intra-op threads for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def each_seed(measure: Callable[[int], _T], seeds: Sequence[int]) -> list[_T]:
    """Measure from each seed in a process of its own on one thread, as many at once as there are cores."""
    import torch

    workers = min(len(seeds), os.cpu_count() or 1)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        return list(pool.map(measure, seeds))


@contextmanager
def local_ray(cpus: int, store_bytes: int) -> Iterator[None]:
    """Have a Ray cluster of this process's own, with as many CPUs as named, whatever the machine has."""
    import ray

    from coordinators.cluster import leave

    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=store_bytes,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        leave()


def interleave(
    candidates: Mapping[str, Callable[[], object]], repetitions: int, *, threads: int = 1, warmup: int = 1
) -> Samples:
    """Time each candidate once per repetition, in turns, and return name -> CPU seconds of each repetition.

    Every second repetition runs in reverse order, so that drift and cache state favour nobody. With one thread the
    clock is the calling thread's, with more it is the whole process's (all of torch's workers; nothing else may run).
    """
    clock = time.thread_time if threads == 1 else time.process_time

    def tell(number: int, seconds: Samples) -> None:
        latest = "  ".join(f"{name} {series[-1]:.3g} s" for name, series in seconds.items())
        progress(f"repetition {number + 1}/{repetitions}: {latest}")

    with torch_threads(threads):
        return interleaved(candidates, repetitions, warmup, clock=clock, on_round=tell)


def ratio_figure(
    key: str,
    seconds: Mapping[str, Sequence[float]],
    candidate: str,
    baseline: str,
    *,
    goal: float | None = None,
    work: float = 1.0,
    what: str | None = None,
) -> Figure:
    """Return how many times faster `candidate` is: the median over repetitions of baseline / candidate seconds.

    `work` is what one repetition does (tokens, calls, ...); the baseline's value is its median work per CPU second.
    """
    ratios = [slow / fast for slow, fast in zip(seconds[baseline], seconds[candidate], strict=True)]
    low, high = bootstrap(ratios)
    return Figure(
        key=key,
        value=statistics.median(ratios),
        unit="x",
        better="higher",
        goal=goal,
        baseline=Baseline(
            what=what or f"{baseline}, work per CPU second", value=work / statistics.median(seconds[baseline])
        ),
        low=low,
        high=high,
        raw={candidate: list(seconds[candidate]), baseline: list(seconds[baseline])},
    )


# VmHWM and not ru_maxrss: the latter also counts what the parent had resident when it spawned this process.
_MEASURE_PEAK = """
import importlib, json, pathlib, resource, sys
module, function, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
getattr(importlib.import_module(module), function)(*arguments)
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak)
"""


def peak_rss(target: str, *arguments: JsonValue) -> int:
    """Call `target` (`package.module:function`) with JSON `arguments` in a fresh process; return its peak RSS in bytes.

    Raises `ForgeError` with the process's last lines of stderr where it fails.
    """
    module, _, function = target.partition(":")
    command = [sys.executable, "-c", _MEASURE_PEAK, module, function, json.dumps(arguments)]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ForgeError(f"{target}{arguments}: exit code {done.returncode}; {done.stderr[-800:]}")
    return int(done.stdout.split()[-1])
