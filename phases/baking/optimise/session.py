"""ONNX files and the sessions that run them: settings as data, and files that cannot run refused before any work."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as states
from pydantic import Field

from phases.errors import ArtifactError, NumericalError
from phases.settings import Settings

Level = Literal["off", "basic", "extended", "all"]
Feeds = dict[str, npt.NDArray[Any]]
_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_FAILURES = (
    states.Fail, states.InvalidArgument, states.InvalidProtobuf, states.NoSuchFile, states.InvalidGraph,
    states.NotImplemented, states.RuntimeException,
)  # fmt: skip


class SessionSettings(Settings):
    """How ONNX Runtime runs a file on a CPU."""

    level: Level = "all"
    disabled: tuple[str, ...] = Field(default=(), description="optimisers of the runtime that are left out")
    threads: int = Field(default=1, ge=1)
    arena: bool = Field(default=True, description="keep freed memory for the next run")
    prepack: bool = Field(default=True, description="copy weights into the layout of the kernels; faster, larger")


def open_session(path: Path, settings: SessionSettings, optimised: Path | None = None) -> ort.InferenceSession:
    """Open a file; the graph as the runtime has optimised it goes to `optimised` where that is named.

    Raises `ArtifactError` where it is no ONNX file or has an operator that the runtime does not know.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[settings.level]
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = settings.arena
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_prepacking", "0" if settings.prepack else "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    more = {"disabled_optimizers": list(settings.disabled)} if settings.disabled else {}
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], **more)
    except _FAILURES as error:
        fix = "use operators that ONNX Runtime's CPU provider has"
        raise ArtifactError(f"{path}: ONNX Runtime cannot run it ({_first_line(error)}); {fix}") from error


def call(path: Path, settings: SessionSettings, feeds: Feeds) -> Callable[[], object]:
    """Open a file and return what runs it on `feeds`, for timing."""
    session = open_session(path, settings)
    return lambda: session.run(None, feeds)


def runs(path: Path, settings: SessionSettings, feeds: Feeds) -> bool:
    """Say whether a file runs under settings: an optimisation of the runtime may break a graph that is sound."""
    try:
        open_session(path, settings).run(None, feeds)
    except (ArtifactError, *_FAILURES):
        return False
    return True


def read_model(path: Path) -> onnx.ModelProto:
    """Read a file. Raises `ArtifactError` where it is none, and `NumericalError` naming a weight that is not finite."""
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own errors have no common base
        raise ArtifactError(f"{path}: not an ONNX file ({_first_line(error)})") from error
    for tensor in model.graph.initializer:
        floating = tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        if floating and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise NumericalError(f"{path}: weight {tensor.name} has values that are not finite")
    return model


def node_counts(path: Path) -> Counter[str]:
    """Return how many nodes of each kind a file has, those inside branches and loops included."""
    model = onnx.load(path, load_external_data=False)
    return Counter(node.op_type for graph in graphs(model) for node in graph.node)


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield a model's graph and those inside it, of branches and loops."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            waiting += [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
