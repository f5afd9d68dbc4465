"""What phase 4 says of its file's speed: computed from samples, lowered by work in the decode loop, or left out."""

import time
from pathlib import Path

import psutil
import pytest

from phases.bitnet import profiler
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import PackedModel, pack
from phases.bitnet.performance import Performance, Turns, measure_performance
from phases.bitnet.titan import to_bitnet
from phases.cognate.titan import TinyTitan


@pytest.fixture
def file(tmp_path: Path, titan: TinyTitan) -> Path:
    write_onnx(pack(to_bitnet(titan, QuantisationConfig())), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds, a fresh process for memory and a look at the machine, is tested with the profiler."""
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 0.0)
    found = profiler.MemoryProfile(file=100, peak_above_runtime=150, page_faults_per_step=0)
    monkeypatch.setattr("phases.bitnet.performance.profile_memory", lambda path: found)


def test_the_speedup_is_the_median_of_rounds() -> None:
    turns = Turns(file=[1.0, 2.0, 1.0], fp32=[3.0, 4.0, 9.0], load=0.0, forced=False)
    assert Performance(turns=turns).metrics() == {"bitnet/inference_speedup": 3.0}


def test_work_in_the_decode_loop_of_the_file_lowers_its_speedup(
    file: Path, titan: TinyTitan, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Burdened(profiler.TokenByToken):
        """The first that is made, that of the file, burns 50 ms of CPU time before it reads."""

        made = 0

        def __init__(self, model: OnnxModel, past: list[int], tokens: list[int]) -> None:
            super().__init__(model, past, tokens)
            self.burns, Burdened.made = Burdened.made == 0, Burdened.made + 1

        def __call__(self) -> None:
            until = time.thread_time() + 0.05
            while self.burns and time.thread_time() < until:
                pass
            super().__call__()

    plain = measure_performance(file, lambda: pack(titan), force=True)
    monkeypatch.setattr("phases.bitnet.performance.TokenByToken", Burdened)
    burdened = measure_performance(file, lambda: pack(titan), force=True)
    assert plain.turns is not None
    assert burdened.turns is not None
    assert burdened.turns.speedup < plain.turns.speedup / 2


def test_what_cannot_be_measured_is_named_and_the_rest_measured(
    file: Path, titan: TinyTitan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedModel, "parameters", 2**29)
    found = measure_performance(file, lambda: pack(titan), force=True)
    assert found.missing == ("turns: 536,870,912 parameters in fp32 are too large for one ONNX file to compare with",)
    assert found.metrics()["bitnet/memory/peak_over_file"] == 1.5
    assert found.metrics()["bitnet/speed/decode_tokens_per_second"] > 0
    assert "bitnet/inference_speedup" not in found.metrics()
