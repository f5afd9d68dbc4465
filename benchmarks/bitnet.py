"""BitNet: bytes, decoding and prefill, exactness, quality against full precision, and the Power-of-Ten score.

The baseline of every ratio is our own fp32 export of the same graph with all of the runtime's optimisations, measured
in turns on one thread. Timings refuse to run on a busy machine; --force overrides that and adds a figure that says
so. Rounds count while memory is quiet (`quiet.py`). Sizes are those of files that run alone. What the documents claim
stands beside what is measured.
"""

import importlib.util
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from onnx import helper

from benchmarks import bitnet_llama, bitnet_quality
from benchmarks.bitnet_models import Embedding, Format, decoder, titan_25m
from benchmarks.harness import Baseline, Figure, progress, ratio_figure
from benchmarks.quiet import QuietMemory
from phases.bitnet.activations import PER_TOKEN
from phases.bitnet.archive import to_bytes
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_graph import IR_VERSION, MICROSOFT, OPSET, Graph, linear
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import pack
from phases.bitnet.packed_linear import integer_product, to_torch
from phases.bitnet.profiler import QUIET_LOAD, TokenByToken, profile_memory, profile_speed, require_quiet
from phases.bitnet.ternary import ternarise
from phases.bitnet.titan import to_bitnet
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.compliance.check import check

_PAST, _TOKENS, _PREFILL, _PROMPT = 128, 16, 256, 8
_GOALS = {"25m": 3.5, "42m": 4.5, "110m": 5.0}
_ROOT = Path(__file__).resolve().parents[1]
_PUBLIC = ("json", "asyncio", "pydantic", "fsspec", "jinja2")


def run(quick: bool, force: bool = False) -> list[Figure]:
    """Measure everything; `quick` leaves out the large models and trains briefly, `force` times on a busy machine."""
    load = require_quiet(force)
    torch.set_num_threads(1)
    found = [*_sizes(), *_exactness(quick), *_compliance()]
    memory, repetitions = QuietMemory(), 5 if quick else 30
    with tempfile.TemporaryDirectory() as folder:
        for size in ("25m",) if quick else tuple(_GOALS):
            found += _speed(size, Path(folder), memory, repetitions)
        found.append(_titan_speed(Path(folder), memory, repetitions))
    found += [*bitnet_llama.figures(quick, memory, repetitions), memory.figure(), *bitnet_quality.figures(quick)]
    if load > QUIET_LOAD:
        found.append(Figure(key="timing_forced_at_load", value=load, unit="load", better="lower", goal=QUIET_LOAD))
    return found


def _sizes() -> list[Figure]:
    """Weigh the files of 25M parameters, tied and as the preset has them, and the peak memory of running one."""
    progress("sizes")
    found = list[Figure]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        weighed: tuple[tuple[bool, Embedding, str, float | None], ...] = (
            (True, "int8", "file_ratio_25m", 8.0),
            (True, "int4", "file_ratio_25m_int4", 10.0),
            (False, "int4", "file_ratio_25m_preset_int4", None),
        )
        for tied, embedding, key, goal in weighed:
            model = titan_25m(tied, embedding)
            full = 4 * model.parameters
            size = write_onnx(model, path)
            what = Baseline(what="ratio to fp16", value=full / 2 / size)
            found.append(
                Figure(key=key, value=full / size, unit="x of fp32", better="higher", goal=goal, baseline=what)
            )
            if tied:
                memory, name = profile_memory(path).ratio, key.replace("file_ratio_25m", "peak_rss_over_file")
                found.append(Figure(key=name, value=memory, unit="x", better="lower", goal=1.6))
            if key == "file_ratio_25m":
                claimed = Baseline(what="claimed by the documents", value=8.2)
                found.append(
                    Figure(key="memory_reduction", value=full / size, unit="x", better="higher", baseline=claimed)
                )
            if key == "file_ratio_25m_int4":
                packed = len(to_bytes(model, "archive"))
                found.append(
                    Figure(key="archive_ratio_25m", value=full / packed, unit="x of fp32", better="higher", goal=13.0)
                )
    return found


def _speed(size: str, folder: Path, memory: QuietMemory, repetitions: int) -> list[Figure]:
    """Time decoding and prefill of a decoder in fp32, ternary and the runtime's own 4 bits, in turns.

    Prefill is that of a file opened for it, which takes more memory; peak memory is that of one that is not.
    """
    progress(f"speed at {size}")
    forms: tuple[Format, ...] = ("fp32", "ternary int8", "ternary int4", "4-bit")
    models, readers = dict[str, OnnxModel](), dict[str, _Reader]()
    ids = np.random.default_rng(0).integers(0, 32_000, _PREFILL).tolist()
    for form in forms:
        path = folder / "model.onnx"
        write_onnx(decoder(size, form), path)
        models[form] = OnnxModel(path)
        if form in ("fp32", "ternary int8"):
            readers[form] = _Reader(OnnxModel(path, fast_prefill=form != "fp32"), ids)
        if form == "ternary int8":
            peak, wall = profile_memory(path).ratio, profile_speed(path, force=True)
    decoding = {form: TokenByToken(model, ids[:_PAST], ids[_PAST : _PAST + _TOKENS]) for form, model in models.items()}
    seconds = memory.interleave(dict(decoding), repetitions)
    best = min(("ternary int8", "ternary int4"), key=lambda form: float(np.median(seconds[form])))
    prefill = memory.interleave(dict(readers), max(3, repetitions // 5))
    return [
        ratio_figure(f"decode_ratio_{size}", seconds, best, "fp32", goal=_GOALS[size], work=_TOKENS),
        ratio_figure(
            f"decode_vs_q4_{size}", seconds, best, "4-bit", goal=None if size == "25m" else 1.15, work=_TOKENS
        ),
        ratio_figure(f"prefill_ratio_{size}", prefill, "ternary int8", "fp32", goal=0.95, work=_PREFILL),
        Figure(key=f"peak_rss_over_file_{size}", value=peak, unit="x", better="lower", goal=1.6),
        Figure(
            key=f"decode_p95_{size}",
            value=wall.decode_p95_ms,
            unit="ms per token, wall clock",
            better="lower",
            baseline=Baseline(what="claimed by the documents", value=15),
        ),
        Figure(
            key=f"speedup_{size}",
            value=float(np.median(seconds["fp32"]) / np.median(seconds[best])),
            unit="x",
            better="higher",
            baseline=Baseline(what="claimed by the documents", value=3.8),
        ),
    ]


def _titan_speed(folder: Path, memory: QuietMemory, repetitions: int) -> Figure:
    """Time decoding of a TinyTitan, all of whose random tokens ponder twice, in fp32 and ternary, in turns."""
    progress("speed of a TinyTitan of 25M")
    ids = np.random.default_rng(0).integers(0, 32_000, _PAST + _TOKENS).tolist()
    decoding = dict[str, TokenByToken]()
    embeddings: tuple[Embedding, ...] = ("fp32", "int8", "int4")
    for embedding in embeddings:
        write_onnx(titan_25m(True, embedding), folder / "model.onnx")
        decoding[embedding] = TokenByToken(OnnxModel(folder / "model.onnx"), ids[:_PAST], ids[_PAST:])
    seconds = memory.interleave(dict(decoding), repetitions)
    best = min(("int8", "int4"), key=lambda embedding: float(np.median(seconds[embedding])))
    return ratio_figure("decode_ratio_titan_25m", seconds, best, "fp32", work=_TOKENS)


class _Reader:
    """Reads a whole prompt."""

    def __init__(self, model: OnnxModel, ids: list[int]) -> None:
        self.model, self.ids = model, ids

    def __call__(self) -> None:
        self.model.stream().read(self.ids)


def _exactness(quick: bool) -> list[Figure]:
    """Compare exact mode with integer arithmetic, layer by layer and in greedy decoding."""
    progress("exactness")
    errors = [_layer_error(rows, columns) for rows, columns in ((648, 216), (216, 1188), (2048, 2048), (200, 37))]
    prompts, length = (4, 32) if quick else (20, 256)
    same = _greedy_agreement(prompts, length)
    return [
        Figure(key="exact_max_rel", value=max(errors), unit="of max |y|", better="lower", goal=1e-5),
        Figure(key="greedy_identical", value=same, unit=f"of {prompts} prompts", better="higher", goal=prompts),
    ]


def _layer_error(rows: int, columns: int) -> float:
    generator = torch.Generator().manual_seed(rows)
    matrix = ternarise(torch.randn(rows, columns, generator=generator))
    x = torch.randn(7, columns, generator=generator)
    graph = Graph(exact=True)
    graph.nodes.append(helper.make_node("Identity", [linear(graph, "x", "w", matrix)], ["y"]))
    value = ort.InferenceSession(_single(graph, columns, rows), providers=["CPUExecutionProvider"])
    y = value.run(None, {"x": x.double().numpy()})[0]
    wanted = (integer_product(x, matrix.codes, PER_TOKEN) * matrix.row_scale.T).numpy()
    return float(np.abs(y - wanted).max() / np.abs(wanted).max())


def _single(graph: Graph, columns: int, rows: int) -> bytes:
    """Return a model of one layer."""
    inputs = [helper.make_tensor_value_info("x", graph.kind, ["T", columns])]
    outputs = [helper.make_tensor_value_info("y", graph.kind, ["T", rows])]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph.proto("layer", inputs, outputs), opset_imports=opsets, ir_version=IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


@torch.no_grad()
def _greedy_agreement(prompts: int, length: int) -> int:
    """Count the prompts that a nano model continues identically in torch and in an exact file."""
    torch.manual_seed(0)
    parent = TinyTitan(PRESETS["nano"]).eval()
    parent.embedding.weight.mul_(20)  # opinions, where random weights have none
    packed = pack(to_bitnet(parent, QuantisationConfig(activations="per_token")))
    model = to_torch(packed).double()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(packed, path, exact=True)
        file = OnnxModel(path)
    same = 0
    for number in range(prompts):
        text = np.random.default_rng(number).integers(16, 2048, _PROMPT).tolist()
        stream = file.stream()
        for place in range(length):
            logits = stream.read(text if place == 0 else text[-1:]).logits[-1]
            text.append(int(logits.argmax()))
        # If torch would choose each of these tokens behind those before it, it would have written the same.
        chosen = model(torch.tensor([text[:-1]]))[0][0, _PROMPT - 1 :].argmax(-1)
        same += chosen.tolist() == text[_PROMPT:]
    return same


def _compliance() -> list[Figure]:
    """Score our code and five well-known packages by the same rules."""
    progress("Power of Ten")
    own = min(check(_ROOT / name).score for name in ("phases", "recovery"))
    scores = {name: check(_package(name)).score for name in _PUBLIC}
    lowest = min(scores, key=scores.__getitem__)
    return [
        Figure(key="pot10_own", value=100 * own, unit="% of (function, rule) pairs", better="higher", goal=95),
        Figure(
            key="pot10_public_min",
            value=100 * scores[lowest],
            unit=f"%, {lowest}",
            better="lower",
            goal=80,
            baseline=Baseline(what="highest of the five, %", value=100 * max(scores.values())),
        ),
    ]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return Path(sysconfig.get_paths()["stdlib"]) / name
    return Path(spec.origin).parent
