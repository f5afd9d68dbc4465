"""Packed models as GGUF, for llama.cpp: ternary weights as TQ2_0 or TQ1_0, embedding and head as Q8_0 or Q4_0.

Codes and scales go over as they are: a row's scale is the scale of each of its blocks, in fp16, which it was rounded to
when it was made. The architecture is `llama`. (That of Microsoft's BitNet demands two further norms in a block, which
no model has unless it was pretrained with them.) A TinyTitan ponders and remembers, which llama.cpp cannot: it is
refused, and so is a width that is no multiple of the format's block. Neither is ever padded or skipped in silence.

Shapes: N rows, K columns, C blocks of a row.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from phases import storage
from phases.bitnet.packed import Architecture, Matrix, PackedModel
from phases.bitnet.rows import RowTensor
from phases.bitnet.ternary import TernaryTensor
from phases.errors import ArtifactError, ConfigError

TernaryType = Literal["TQ2_0", "TQ1_0"]
_TERNARY_BLOCK, _ROW_BLOCK = 256, 32
_CONTEXT = 4096
_NORMS = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}


def write_gguf(model: PackedModel, tokenizer: str, path: Path, ternary: TernaryType = "TQ2_0") -> int:
    """Write the file and return its size in bytes; `tokenizer` is the text of a byte-level BPE's `tokenizer.json`.

    Raises `ConfigError` naming what the format cannot hold.
    """
    _require_fits(model)
    with TemporaryDirectory() as folder:
        temporary = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(temporary, "llama")
        _write_settings(writer, model.architecture)
        _write_tokenizer(writer, tokenizer, model.architecture.vocab_size)
        for name, value in _tensors(model):
            data, kind = _encoded(value, Type[ternary])
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        content = temporary.read_bytes()
    storage.write_bytes(str(path), content)
    return len(content)


def _require_fits(model: PackedModel) -> None:
    a = model.architecture
    if a.titan is not None:
        raise ConfigError.of("format", "gguf", "llama.cpp has no ponder steps and no memory", "choose onnx")
    for name, matrix in model.matrices.items():
        if isinstance(matrix, Tensor):
            continue
        columns, block = matrix.codes.shape[1], _TERNARY_BLOCK if isinstance(matrix, TernaryTensor) else _ROW_BLOCK
        if columns % block:
            problem = f"not a multiple of {block}, which GGUF's blocks need"
            raise ConfigError.of(f"columns of {name}", columns, problem, "choose onnx, torch or archive")


def _write_settings(writer: gguf.GGUFWriter, a: Architecture) -> None:
    writer.add_block_count(a.n_layers)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(a.d_model)
    writer.add_feed_forward_length(a.hidden)
    writer.add_head_count(a.n_heads)
    writer.add_head_count_kv(a.n_kv_heads)
    writer.add_key_length(a.head_dim)
    writer.add_value_length(a.head_dim)
    writer.add_layer_norm_rms_eps(a.eps)
    writer.add_rope_freq_base(a.rope_theta)
    writer.add_rope_dimension_count(a.head_dim)
    writer.add_vocab_size(a.vocab_size)


def _write_tokenizer(writer: gguf.GGUFWriter, text: str, vocab_size: int) -> None:
    content: dict[str, Any] = json.loads(text)
    if content.get("model", {}).get("type") != "BPE":
        kind = content.get("model", {}).get("type")
        raise ConfigError.of("tokenizer", kind, "only byte-level BPE can be written", "choose onnx")
    special = {token["id"]: token["content"] for token in content.get("added_tokens", ())}
    names = {number: name for name, number in content["model"]["vocab"].items()} | special
    tokens = [names.get(number, f"<|unused{number}|>") for number in range(vocab_size)]
    kinds = [gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(vocab_size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)


def _tensors(model: PackedModel) -> list[tuple[str, Matrix]]:
    """Return the tensors by llama.cpp's names, fused ones taken apart."""
    a = model.architecture
    found: list[tuple[str, Matrix]] = [("token_embd.weight", model.matrices["embedding.weight"])]
    if not a.tied:
        found.append(("output.weight", model.matrices["head.weight"]))
    found.append(("output_norm.weight", model.vectors["norm.weight"]))
    keys = a.n_kv_heads * a.head_dim
    parts = {
        "qkv": (("attn_q", a.n_heads * a.head_dim), ("attn_k", keys), ("attn_v", keys)),
        "out": (("attn_output", a.d_model),),
        "gate_up": (("ffn_gate", a.hidden), ("ffn_up", a.hidden)),
        "down": (("ffn_down", a.d_model),),
    }
    for layer in range(a.n_layers):
        source, target = f"blocks.{layer}", f"blk.{layer}"
        for ours, theirs in _NORMS.items():
            found.append((f"{target}.{theirs}.weight", model.vectors[f"{source}.{ours}.weight"]))
        for fused, pieces in parts.items():
            start = 0
            for name, rows in pieces:
                order = _rope_order(name, rows, start, a.head_dim)
                found.append((f"{target}.{name}.weight", _rows(model.matrices[f"{source}.{fused}.weight"], order)))
                if (bias := model.vectors.get(f"{source}.{fused}.bias")) is not None:
                    found.append((f"{target}.{name}.bias", bias[order]))
                start += rows
    return found


def _rope_order(name: str, rows: int, start: int, head_dim: int) -> Tensor:
    """Return which rows of a fused matrix make a tensor: llama.cpp turns neighbours where we turn halves."""
    order = torch.arange(start, start + rows)
    if name in ("attn_q", "attn_k"):
        order = order.view(-1, 2, head_dim // 2).transpose(1, 2).flatten()
    return order


def _rows(matrix: Matrix, order: Tensor) -> Matrix:
    match matrix:
        case TernaryTensor():
            scale = matrix.row_scale[order]
            return TernaryTensor(matrix.codes[order], scale, "row")
        case RowTensor():
            return RowTensor(matrix.codes[order], matrix.scale[order], matrix.bits)
    return matrix[order]


def _encoded(value: Matrix, ternary: Type) -> tuple[npt.NDArray[Any], Type]:
    """Return a tensor's bytes (N, bytes of a row) and their type; vectors and plain matrices stay in fp32."""
    match value:
        case TernaryTensor():
            # The format's own scale is the largest |w| of a block: the row's, unless the block is all zeros.
            return gguf.quants.quantize(value.dequantise().numpy(), ternary), ternary
        case RowTensor(bits=8):
            return _with_scales(value, value.codes.numpy().view(np.uint8)), Type.Q8_0
        case RowTensor():
            offset = (value.codes.numpy() + 8).astype(np.uint8).reshape(len(value.codes), -1, 2, _ROW_BLOCK // 2)
            nibbles = (offset[:, :, 0] | (offset[:, :, 1] << 4)).astype(np.uint8)
            return _with_scales(value, nibbles), Type.Q4_0
    return value.numpy().astype(np.float32), Type.F32


def _with_scales(value: RowTensor, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return blocks of a scale and its codes, (N, C * bytes of a block)."""
    rows = len(value.codes)
    blocks = data.reshape(rows, value.codes.shape[1] // _ROW_BLOCK, -1)
    scale = value.scale.numpy().astype(np.float16).view(np.uint8)[:, None]  # (N, 1, 2)
    joined: npt.NDArray[np.uint8] = np.concatenate([np.repeat(scale, blocks.shape[1], 1), blocks], 2)
    return joined.reshape(rows, -1)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a GGUF file in fp32, for checking. Raises `ArtifactError` for what is not one."""
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a GGUF file ({error})") from error
    return {
        tensor.name: torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        for tensor in reader.tensors
    }
