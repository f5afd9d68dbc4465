"""Other tools' int8 files of a model, made as they recommend, each in a virtual environment of its own.

Environments and what was made are kept under bench-results, the files by a hash of all that they were made from. Every
tool gets the same ONNX file and the same calibration feeds, of which only NNCF's static recipe has a use.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.harness import RESULTS, progress
from benchmarks.peers import environment_of, run
from phases import storage
from phases.baking.optimise.session import Feeds

_MAKE_SECONDS = 2400
_TORCH = "torch==2.13.0+cpu"  # and not the one from PyPI, which brings CUDA along
_ENVIRONMENT = {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

_OLIVE = """
import pathlib, shutil, sys, tempfile
from olive.workflows import run
source, feeds, out = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    fuse = {"type": "OrtTransformersOptimization", "model_type": "bert", "num_heads": 12, "hidden_size": 384}
    passes = {"fuse": fuse, "quantise": {"type": "OnnxDynamicQuantization"}}
    model = {"type": "ONNXModel", "model_path": source}
    run({"input_model": model, "passes": passes, "output_dir": folder + "/out", "cache_dir": folder + "/cache"})
    (made,) = pathlib.Path(folder, "out").rglob("*.onnx")
    shutil.copy(made, out)
"""

_OPTIMUM = """
import pathlib, shutil, sys, tempfile
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
source, feeds, out = sys.argv[1:]
recipe = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
with tempfile.TemporaryDirectory() as folder:
    ORTQuantizer(pathlib.Path(source)).quantize(save_dir=folder, quantization_config=recipe)
    (made,) = pathlib.Path(folder).glob("*.onnx")
    shutil.copy(made, out)
"""

_NNCF = """
import collections, sys
import nncf, numpy, onnx
source, feeds, out = sys.argv[1:]
rows = collections.defaultdict(dict)
for key, value in numpy.load(feeds).items():
    number, _, name = key.partition("/")
    rows[number][name] = value
data = nncf.Dataset(list(rows.values()))
onnx.save(nncf.quantize(onnx.load(source), data, model_type=nncf.ModelType.TRANSFORMER), out)
"""


@dataclass(frozen=True)
class Quantiser:
    """A tool: what to install, and a script that reads a model and feeds and writes a file."""

    name: str
    requirements: tuple[str, ...]
    script: str

    def quantise(self, model: Path, feeds: Sequence[Feeds]) -> Path:
        """Return the tool's int8 file of `model`. Raises `ForgeError` with the reason where there is none."""
        key = hashlib.sha256(json.dumps([self.requirements, self.script, storage.sha256(str(model))]).encode())
        for each in feeds:
            for name, value in each.items():
                key.update(name.encode() + value.tobytes())
        out = RESULTS / "quantised" / f"{self.name}-{key.hexdigest()[:16]}.onnx"
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            python = environment_of(self.name, self.requirements)
            progress(f"{self.name} quantises")
            given, made = out.with_suffix(".npz"), out.with_suffix(".tmp")
            np.savez(given, **{f"{i}/{n}": v for i, each in enumerate(feeds) for n, v in each.items()})  # type: ignore[arg-type]
            run([str(python), "-c", self.script, str(model), str(given), str(made)], _MAKE_SECONDS, _ENVIRONMENT)
            given.unlink()
            made.rename(out)
        return out


def _tool(name: str, script: str, *requirements: str) -> Quantiser:
    """Name a tool, with the runtime that will run its file. torch goes first: what needs it takes the CPU's."""
    return Quantiser(name, (_TORCH, *requirements, f"onnxruntime=={ort.__version__}"), script)


QUANTISERS = (
    _tool("olive", _OLIVE, "olive-ai==0.13.0", "requests"),
    _tool("optimum", _OPTIMUM, "optimum-onnx[onnxruntime]==0.1.0"),
    _tool("nncf", _NNCF, "nncf==3.4.0", "onnx==1.23.2"),
)
