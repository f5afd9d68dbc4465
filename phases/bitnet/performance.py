"""What the file that phase 4 exports takes in memory, how fast it is, and how many times as fast as the same in fp32.

The fp32 file has the weights of the phase's model, so it computes the same, halts at the same tokens, and has the same
graph. Another machine has other times: what a run states is computed from its samples again, and `forge profile`
measures anew. What cannot be measured, e.g. since the machine is busy, is left out and named.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import Field

from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import PackedModel
from phases.bitnet.profiler import (
    QUIET_LOAD,
    MemoryProfile,
    SpeedProfile,
    TokenByToken,
    profile_memory,
    profile_speed,
    require_quiet,
)
from phases.errors import ForgeError
from phases.settings import Settings
from phases.timing import interleaved

_PAST, _TOKENS, _ROUNDS = 128, 16, 9
_MOST_BYTES = 2**31  # of one ONNX file: protobuf's limit


class Turns(Settings):
    """CPU seconds on one thread of each round of decoding, in which both files read the same random tokens on."""

    file: list[float] = Field(min_length=1)
    fp32: list[float] = Field(min_length=1)
    load: float = Field(description="cores that others kept busy when it started")
    forced: bool = Field(description="measured although the machine was busy: not to be quoted")

    @property
    def speedup(self) -> float:
        """How many times as fast the file is, the median over the rounds."""
        return float(np.median(np.divide(self.fp32, self.file)))


class Performance(Settings):
    """What was measured; what was not is None and has its reason in `missing`."""

    memory: MemoryProfile | None = None
    speed: SpeedProfile | None = None
    turns: Turns | None = None
    missing: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Return what there is, named as in W&B."""
        found = dict[str, float]()
        if self.memory:
            found["bitnet/memory/peak_mb"] = self.memory.peak_above_runtime / 1e6
            found["bitnet/memory/peak_over_file"] = self.memory.ratio
            found["bitnet/memory/page_faults_per_step"] = self.memory.page_faults_per_step
        if self.speed:
            found |= {f"bitnet/speed/{name}": float(value) for name, value in self.speed.model_dump().items()}
        if self.turns:
            found["bitnet/inference_speedup"] = self.turns.speedup
        return found


def measure_performance(file: Path, full: Callable[[], PackedModel], *, force: bool) -> Performance:
    """Profile the exported `file` on this machine, and time it against the same model in fp32, which `full` returns."""
    found, missing = dict[str, Settings](), list[str]()
    parts: dict[str, Callable[[], Settings]] = {
        "memory": lambda: profile_memory(file),
        "speed": lambda: profile_speed(file, force=force),
        "turns": lambda: _in_turns(file, full, force),
    }
    for part, measure in parts.items():
        try:
            found[part] = measure()
        except ForgeError as error:
            missing.append(f"{part}: {error}")
    return Performance.model_validate(found | {"missing": missing})


def _in_turns(file: Path, full: Callable[[], PackedModel], force: bool) -> Turns:
    """Time both. Raises `BusyMachineError`, and `ForgeError` where fp32 is too large for one file."""
    load, model = require_quiet(force), full()
    if 4 * model.parameters >= _MOST_BYTES:
        raise ForgeError(f"{model.parameters:,} parameters in fp32 are too large for one ONNX file to compare with")
    ids = np.random.default_rng(0).integers(0, model.architecture.vocab_size, _PAST + _TOKENS).tolist()
    with TemporaryDirectory() as folder:
        write_onnx(model, Path(folder) / "fp32.onnx")
        models = {"file": OnnxModel(file), "fp32": OnnxModel(Path(folder) / "fp32.onnx")}
        readers = {name: TokenByToken(opened, ids[:_PAST], ids[_PAST:]) for name, opened in models.items()}
        seconds = interleaved(readers, _ROUNDS)
    return Turns(**seconds, load=load, forced=load > QUIET_LOAD)
