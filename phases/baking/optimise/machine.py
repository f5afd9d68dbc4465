"""What this machine can do, by trying: instruction sets, products and memory traffic per second, providers that run.

Nothing is called supported that was not run. TensorRT has no place here but as a recipe, marked as not run.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, save

from phases.settings import Settings

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve")
_SIZE = 512
_TENSORRT = "trtexec --onnx=model.onnx --saveEngine=model.plan --fp16"


class Machine(Settings):
    """Measured with one thread."""

    isa: tuple[str, ...]
    cores: int
    fp32_gflops: float
    bf16_gflops: float
    copy_gb_per_second: float
    providers_run: tuple[str, ...]
    providers_not_run: dict[str, str]
    tensorrt_recipe: str


def probe() -> Machine:
    """Measure this machine, in about a second."""
    run, not_run = _providers()
    return Machine(
        isa=_isa(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        fp32_gflops=_product(torch.float32),
        bf16_gflops=_product(torch.bfloat16),
        copy_gb_per_second=_copy(),
        providers_run=run,
        providers_not_run=not_run,
        tensorrt_recipe=f"NOT RUN: {_TENSORRT}",
    )


def _isa() -> tuple[str, ...]:
    file = Path("/proc/cpuinfo")
    words = set(file.read_text().split()) if file.exists() else set[str]()
    return tuple(flag for flag in _FLAGS if flag in words)


def _product(dtype: torch.dtype) -> float:
    """Return the GFLOP/s of a product of square matrices."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = (torch.ones(_SIZE, _SIZE, dtype=dtype) for _ in range(2))
        best = min(_seconds(lambda: a @ b) for _ in range(8))
    finally:
        torch.set_num_threads(before)
    return 2 * _SIZE**3 / best / 1e9


def _copy() -> float:
    """Return the GB/s read and written by copying 64 MB."""
    source = np.ones(16_000_000, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: np.copyto(target, source)) for _ in range(5)) / 1e9


def _seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return max(time.thread_time() - start, 1e-9)


def _providers() -> tuple[tuple[str, ...], dict[str, str]]:
    """Run a product with each of the runtime's providers; return those that did it, and why others did not."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    ran, failed = list[str](), dict[str, str]()
    with TemporaryDirectory() as folder:
        save(model, f"{folder}/probe.onnx")
        for name in ort.get_available_providers():
            try:
                session = ort.InferenceSession(f"{folder}/probe.onnx", providers=[name])
                session.run(None, {"x": np.ones((4, 4), np.float32)})
            except Exception as error:  # a provider raises what its driver does
                failed[name] = str(error)[:200]
                continue
            if session.get_providers()[0] == name:
                ran.append(name)
            else:
                failed[name] = f"fell back to {session.get_providers()[0]}"
    return tuple(ran), failed
