"""A TinyTitan as one ONNX file: a piece of text is one run, with the ponder loop as an ONNX `Loop` in the graph.

What the graph does not hold is the writing of memory, which the file's metadata has the weights for
(`titan_runtime.py`). Before a file gets its name, it reads texts of several numbers of rows and tokens, over the end of
a segment, and must compute what the model does.
"""

import base64
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from onnx import helper
from safetensors.torch import save

from phases import storage
from phases.baking.optimise.export import compare, serialised
from phases.baking.optimise.titan_graph import titan_graph
from phases.baking.optimise.titan_runtime import ARCHITECTURE, MEMORY, OnnxTitan
from phases.bitnet.memory_writer import writer_tensors
from phases.bitnet.onnx_graph import IR_VERSION, MICROSOFT, OPSET
from phases.bitnet.packed import pack
from phases.bitnet.titan import BitTitan
from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError


def export_titan(model: TinyTitan, path: Path) -> None:
    """Write `model` as the ONNX file `path`, for any number of rows, tokens and places before them, none included.

    Raises `ConfigError` for a quantised model, and `ArtifactError` for weights that are not finite, or where the file
    does not compute what the model does.
    """
    if isinstance(model, BitTitan):
        raise ConfigError.of("model", type(model).__name__, "quantised already", "write it with `forge quantize`")
    packed = pack(model)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    proto = helper.make_model(
        titan_graph(packed), opset_imports=opsets, ir_version=IR_VERSION, producer_name="agent-forge"
    )
    memory = base64.b64encode(save(writer_tensors(packed))).decode()
    helper.set_model_props(proto, {ARCHITECTURE: packed.architecture.model_dump_json(), MEMORY: memory})
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        data = serialised(proto)
        file.write_bytes(data)
        _check(file, model)
    storage.write_bytes(str(path), data)


@torch.no_grad()
def _check(file: Path, model: TinyTitan) -> None:
    """Raise `ArtifactError` where the file does not read as the model does."""
    rng, exported = np.random.default_rng(0), OnnxTitan(file)
    for batch, lengths in ((1, (1, 1, model.config.segment_len)), (3, (5, 1))):
        state, stream = model.empty_state(batch), exported.stream(batch)
        for length in lengths:
            ids = rng.integers(0, model.config.vocab_size, (batch, length))
            what = f"{batch} x {length} tokens behind {stream.position}"
            wanted = model(torch.from_numpy(ids), state)[0]
            compare([stream.read(ids).logits], [wanted], what)
