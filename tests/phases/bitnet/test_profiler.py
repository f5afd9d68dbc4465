"""Profilers: they refuse on a busy machine, mark what was forced, and count real memory."""

from pathlib import Path

import psutil
import pytest

from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.packed import pack
from phases.bitnet.profiler import BusyMachineError, profile_memory, profile_speed
from phases.cognate.titan import TinyTitan
from phases.errors import ForgeError
from support.titans import small


@pytest.fixture
def file(tmp_path: Path, titan: TinyTitan) -> Path:
    write_onnx(pack(titan), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_timing_refuses_on_a_busy_machine_and_marks_what_was_forced(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 75.0)
    with pytest.raises(BusyMachineError, match=r"3\.00 cores busy"):
        profile_speed(file)
    found = profile_speed(file, past=4, tokens=6, prefill=20, force=True)
    assert found.forced
    assert found.load == 3.0
    assert 0 < found.decode_p50_ms <= found.decode_p95_ms
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 2.5)
    assert not profile_speed(file, past=4, tokens=6, prefill=20).forced


@pytest.mark.slow
def test_memory_is_that_of_a_fresh_process(file: Path) -> None:
    write_onnx(pack(small(vocab_size=100_000)), file)  # more than what the runtime has to spare
    found = profile_memory(file, steps=8)
    assert found.file == file.stat().st_size
    assert found.peak_above_runtime > found.file
    assert found.ratio == found.peak_above_runtime / found.file
    with pytest.raises(ForgeError, match="exit code"):
        profile_memory(file.with_name("missing.onnx"))
