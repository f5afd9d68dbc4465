"""Memory of an exported file, measured in a fresh process, and its speed, measured on a quiet machine only.

On a busy machine full-precision weights starve for bandwidth while packed ones sit in the cache: ratios came out up to
2.7 times too high. So timing refuses to run there; `force` overrides that and the report says so. How busy it is, is
looked at for a second: the load average still tells of what ended a minute ago, and not yet of what has just begun.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from pydantic import Field

from phases.bitnet.config import QuantisationConfig
from phases.bitnet.onnx_decoder import DecoderStream
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import AnyStream, OnnxModel
from phases.bitnet.packed import pack
from phases.bitnet.titan import to_bitnet
from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.errors import ForgeError
from phases.settings import Settings

QUIET_LOAD = 0.5
_LOOK_SECONDS = 1.0
_ROOT = Path(__file__).resolve().parents[2]
_SEED = 0
# VmHWM is this process's own peak; what its parent had resident does not count. The bare runtime has opened and run the
# smallest model, for what its code and tables take is not the file's; its own peak is then forgotten.
_CHILD = """
import json, pathlib, resource, sys
import numpy as np
from phases.bitnet.onnx_runtime import OnnxModel
smallest, path, steps = sys.argv[1:]
def peak(): return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
def run(path, steps):
    model = OnnxModel(pathlib.Path(path))
    stream, faults = model.stream(), []
    for token in np.random.default_rng(0).integers(0, model.architecture.vocab_size, steps).tolist():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        stream.read([token])
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return faults
run(smallest, 40)
pathlib.Path("/proc/self/clear_refs").write_text("5")
bare = peak()
print(json.dumps({"bare": bare, "faults": run(path, int(steps)), "peak": peak()}))
"""
_SMALLEST = TitanConfig(
    vocab_size=272,
    d_model=16,
    n_layers=2,
    n_heads=2,
    hidden=32,
    tied=True,
    segment_len=16,
    memory=MemoryConfig(hidden=16, capacity=8),
)


class BusyMachineError(ForgeError):
    """Something else is running, so a timing would say nothing."""


class MemoryProfile(Settings):
    """Bytes. Page faults per decode step, after warm-up, are memory that is fresh each time; 0 is ideal."""

    file: int
    peak_above_runtime: int = Field(description="peak resident memory beyond that of a runtime with the smallest model")
    page_faults_per_step: float

    @property
    def ratio(self) -> float:
        """Peak memory above the bare runtime over the file's size."""
        return self.peak_above_runtime / self.file


class SpeedProfile(Settings):
    """Wall-clock time, batch 1."""

    decode_p50_ms: float
    decode_p95_ms: float
    decode_tokens_per_second: float
    prefill_p50_ms: float
    prefill_tokens_per_second: float
    prefill_tokens: int
    threads: int
    load: float = Field(description="cores that others kept busy when it started")
    forced: bool = Field(description="measured although the machine was busy: not to be quoted")


def profile_memory(path: Path, steps: int = 64) -> MemoryProfile:
    """Load and run a file in a fresh process. Raises `ForgeError` with its last words where that fails."""
    with TemporaryDirectory() as folder:
        smallest = Path(folder) / "smallest.onnx"
        write_onnx(pack(to_bitnet(TinyTitan(_SMALLEST), QuantisationConfig())), smallest)
        command = [sys.executable, "-c", _CHILD, str(smallest), str(path.resolve()), str(steps)]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ForgeError(f"{path}: profiling failed with exit code {done.returncode}; {done.stderr[-500:]}")
    found = json.loads(done.stdout)
    faults = found["faults"][len(found["faults"]) // 2 :]
    above = found["peak"] - found["bare"]
    size = path.stat().st_size
    return MemoryProfile(file=size, peak_above_runtime=above, page_faults_per_step=float(np.median(faults)))


def profile_speed(
    path: Path, *, past: int = 128, tokens: int = 64, prefill: int = 256, threads: int = 1, force: bool = False
) -> SpeedProfile:
    """Time decoding behind `past` tokens, and reading `prefill` at once.

    Raises `BusyMachineError` above a load of 0.5, unless `force` is set.
    """
    load = require_quiet(force)
    model = OnnxModel(path, threads)
    ids = np.random.default_rng(_SEED).integers(0, model.architecture.vocab_size, past + tokens + 4).tolist()
    stream = model.stream()
    stream.read(ids[:past])
    decode = [_seconds(_reader(stream, [token])) for token in ids[past:]][4:]
    long = np.random.default_rng(_SEED).integers(0, model.architecture.vocab_size, prefill).tolist()
    reads = [_seconds(_reader(model.stream(), long)) for _ in range(6)][1:]
    return SpeedProfile(
        decode_p50_ms=1e3 * float(np.median(decode)),
        decode_p95_ms=1e3 * float(np.quantile(decode, 0.95)),
        decode_tokens_per_second=len(decode) / sum(decode),
        prefill_p50_ms=1e3 * float(np.median(reads)),
        prefill_tokens_per_second=prefill / float(np.median(reads)),
        prefill_tokens=prefill,
        threads=threads,
        load=load,
        forced=load > QUIET_LOAD,
    )


def require_quiet(force: bool) -> float:
    """Return how many cores others keep busy. Raises `BusyMachineError` above 0.5 where `force` is not set."""
    load: float = psutil.cpu_percent(_LOOK_SECONDS) / 100 * psutil.cpu_count()
    if load > QUIET_LOAD and not force:
        raise BusyMachineError(
            f"others keep {load:.2f} cores busy, more than {QUIET_LOAD}: timings would flatter; wait, or force them "
            "(--force, or bitnet.force_timing in a run), which marks them"
        )
    return load


class TokenByToken:
    """Reads on by the same few tokens each time it is called, behind the same past where the model allows for it."""

    def __init__(self, model: OnnxModel, past: list[int], tokens: list[int]) -> None:
        self.past, self.tokens = len(past), tokens
        self.stream: AnyStream = model.stream()
        self.stream.read(past)

    def __call__(self) -> None:
        for token in self.tokens:
            self.stream.read([token])
        if isinstance(self.stream, DecoderStream):
            self.stream.position = self.past  # what was written behind it is not seen, and then overwritten


def _reader(stream: AnyStream, tokens: list[int]) -> Callable[[], object]:
    return lambda: stream.read(tokens)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
