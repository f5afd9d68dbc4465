"""From a model directory to a quantised file, in any of the formats: what `forge quantize` does.

Takes a TinyTitan of ours or a LLaMA-like safetensors directory. One that phase 4 wrote keeps its codes and scales, for
its weights are what quantising gives; any other is quantised here without training, and loses by it.
"""

from pathlib import Path
from typing import Literal

from phases import modeldir, storage
from phases.bitnet.archive import to_bytes
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.gguf_file import write_gguf
from phases.bitnet.llama import is_llama, read_llama
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.packed import PackedModel, pack
from phases.bitnet.titan import to_bitnet
from phases.cognate.loading import load_model
from phases.errors import ArtifactError

Format = Literal["onnx", "gguf", "torch", "archive"]
NAMES: dict[Format, str] = {
    "onnx": "model.onnx",
    "gguf": "model.gguf",
    "torch": "model.bitnet",
    "archive": "model.bitnet.zst",
}


def quantise_directory(
    source: str, out: str, form: Format = "onnx", *, quantisation: QuantisationConfig | None = None, exact: bool = False
) -> Path:
    """Write the quantised file and the tokenizer into the local folder `out` and return the file's path.

    Raises `ConfigError` naming what the format cannot hold and `ArtifactError` for a source that is no model.
    """
    wanted = quantisation or QuantisationConfig(activations="per_token" if exact else "block")
    packed = read_packed(source, wanted)
    tokenizer = storage.join(source, modeldir.TOKENIZER)
    path = Path(out) / NAMES[form]
    match form:
        case "onnx":
            write_onnx(packed, path, exact=exact)
        case "gguf":
            write_gguf(packed, storage.read_bytes(tokenizer).decode(), path)
        case "torch" | "archive":
            storage.write_bytes(str(path), to_bytes(packed, form))
    if storage.exists(tokenizer):
        storage.write_bytes(str(Path(out) / modeldir.TOKENIZER), storage.read_bytes(tokenizer))
    return path


def read_packed(source: str, quantisation: QuantisationConfig) -> PackedModel:
    """Return the quantised model of a directory of either kind. Raises `ArtifactError` where it is neither."""
    if modeldir.is_model(source):
        return pack(to_bitnet(load_model(source, device="cpu").model, quantisation))
    folder = storage.local_folder(source)
    if not is_llama(folder):
        raise ArtifactError(f"{source}: neither a model directory of ours nor a LLaMA-like safetensors directory")
    return read_llama(folder, quantisation)
