"""GGUF files: every number survives, what cannot be held is refused by name, and llama.cpp agrees where it is there."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from phases.bitnet.gguf_file import TernaryType, read_tensors, write_gguf
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import Architecture, Matrix, PackedModel, pack
from phases.bitnet.rows import Bits, quantise_rows
from phases.bitnet.ternary import ternarise
from phases.corpus.tokenizer import train_tokenizer
from phases.errors import ArtifactError, ConfigError

VOCAB = 320


@pytest.fixture(scope="module")
def tokenizer() -> str:
    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    return train_tokenizer([" ".join(words)] * 3, VOCAB).to_str()


def decoder(d_model: int = 256, bits: Bits = 8, tied: bool = False) -> PackedModel:
    """Return a random decoder with grouped keys."""
    generator = torch.Generator().manual_seed(0)
    hidden, head_dim, heads, kv = 2 * d_model, d_model // 4, 4, 2
    shapes = {"qkv": ((heads + 2 * kv) * head_dim, d_model), "out": (d_model, d_model)}
    shapes |= {"gate_up": (2 * hidden, d_model), "down": (d_model, hidden)}

    def draw(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5 * 1.5

    matrices: dict[str, Matrix] = {"embedding.weight": quantise_rows(draw(VOCAB, d_model) * 8, bits)}
    if not tied:
        matrices["head.weight"] = quantise_rows(draw(VOCAB, d_model) * 2, bits)
    vectors = {"norm.weight": torch.rand(d_model, generator=generator) + 0.5}
    for layer in range(2):
        for name, shape in shapes.items():
            matrices[f"blocks.{layer}.{name}.weight"] = ternarise(draw(*shape))
        for name in ("attention_norm", "mlp_norm"):
            vectors[f"blocks.{layer}.{name}.weight"] = torch.rand(d_model, generator=generator) + 0.5
    architecture = Architecture(
        vocab_size=VOCAB,
        d_model=d_model,
        n_layers=2,
        n_heads=heads,
        n_kv_heads=kv,
        head_dim=head_dim,
        hidden=hidden,
        eps=1e-6,
        rope_theta=10_000.0,
        tied=tied,
        activations="block",
        quantised_head=True,
    )
    return PackedModel(architecture, matrices, vectors)


@pytest.mark.parametrize("ternary", ["TQ2_0", "TQ1_0"])
@pytest.mark.parametrize("bits", [8, 4])
def test_every_number_survives(tmp_path: Path, tokenizer: str, ternary: TernaryType, bits: Bits) -> None:
    model = decoder(bits=bits)
    path = tmp_path / "model.gguf"
    assert write_gguf(model, tokenizer, path, ternary) == path.stat().st_size
    found = read_tensors(path)
    assert torch.equal(found["token_embd.weight"], model.matrices["embedding.weight"].dequantise())
    assert torch.equal(found["output.weight"], model.matrices["head.weight"].dequantise())
    gate, up = model.matrices["blocks.1.gate_up.weight"].dequantise().chunk(2)
    assert torch.equal(found["blk.1.ffn_gate.weight"], gate)
    assert torch.equal(found["blk.1.ffn_up.weight"], up)
    assert torch.equal(found["blk.0.ffn_down.weight"], model.matrices["blocks.0.down.weight"].dequantise())
    q, k, v = model.matrices["blocks.0.qkv.weight"].dequantise().split([256, 128, 128])
    assert torch.equal(found["blk.0.attn_v.weight"], v)
    for name, ours in (("q", q), ("k", k)):
        wanted = ours.view(-1, 2, 32, 256).transpose(1, 2).reshape(-1, 256)
        assert torch.equal(found[f"blk.0.attn_{name}.weight"], wanted)


def test_what_the_format_cannot_hold_is_refused_by_name(tmp_path: Path, tokenizer: str, titan: torch.nn.Module) -> None:
    with pytest.raises(ConfigError, match="216"):
        write_gguf(decoder(d_model=216), tokenizer, tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="ponder"):
        write_gguf(pack(titan), tokenizer, tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="BPE"):
        write_gguf(decoder(), '{"model": {"type": "Unigram"}}', tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
    (tmp_path / "broken.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match=r"broken\.gguf"):
        read_tensors(tmp_path / "broken.gguf")


@pytest.mark.slow
def test_llama_cpp_predicts_the_same(tmp_path: Path, tokenizer: str) -> None:
    """Its 8-bit activations have blocks of 256, ours of 128: log-probabilities differ by a little."""
    xllamacpp = pytest.importorskip("xllamacpp")
    model = decoder()
    write_gguf(model, tokenizer, tmp_path / "model.gguf")
    write_onnx(model, tmp_path / "model.onnx")
    ids = list(range(20, 32))
    logits = torch.from_numpy(OnnxModel(tmp_path / "model.onnx").stream().read(ids).logits[-1])
    ours = torch.log_softmax(logits, 0).numpy()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / "model.gguf")
    parameters.n_ctx, parameters.cpuparams.n_threads, parameters.warmup = 256, 1, False
    server = xllamacpp.Server(parameters)
    answer = server.handle_completions({"prompt": ids, "n_probs": VOCAB, "n_predict": 1, "temperature": 1.0})
    content = answer["choices"][0]["logprobs"]["content"][0]
    theirs = {entry["id"]: entry["logprob"] for entry in content["top_logprobs"]}
    off = [abs(ours[number] - value) for number, value in theirs.items() if math.isfinite(value)]
    assert len(off) > VOCAB / 2
    assert np.median(off) < 0.15
    assert max(theirs, key=theirs.__getitem__) == int(ours.argmax())
