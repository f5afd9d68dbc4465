"""Against llama.cpp: decoding speed of one random decoder, and bits per byte of one trained model.

Embedding and head have as many bits on both sides. xllamacpp's wheel has no AVX-512 kernels, and its times include the
server and sampling, ours the choice of the most probable token: not quite like for like. The model that is trained is a
small LLaMA, ternary from its first step, for llama.cpp can run neither ponder steps nor a memory. Without xllamacpp the
figures are left out and that is said.
"""

import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bitnet_models import Format, decoder
from benchmarks.harness import Baseline, Figure, progress, ratio_figure, torch_threads
from benchmarks.quiet import QuietMemory
from phases.bitnet.activations import quantiser_for
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.gguf_file import write_gguf
from phases.bitnet.linear import BitLinear
from phases.bitnet.llama import read_llama
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.rows import quantise_rows
from phases.bitnet.ternary import ternarise
from phases.corpus.config import CorpusConfig
from phases.corpus.packed import Corpus
from phases.corpus.prepare import prepare
from phases.corpus.tokenizer import train_tokenizer

_PAST, _TOKENS = 128, 48
_CONTEXT, _VOCABULARY, _LENGTH = 512, 2048, 128
_HEADS: dict[Format, tuple[str, str]] = {
    "ternary int4": ("decode_vs_llamacpp", "Q4_0"),  # the faster head, as in `decode_ratio`
    "ternary int8": ("decode_vs_llamacpp_int8", "Q8_0"),
}
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def figures(quick: bool, memory: QuietMemory, repetitions: int) -> list[Figure]:
    """Return `decode_vs_llamacpp`, with heads in 4 and in 8 bits, and `gguf_bpb_delta`."""
    if importlib.util.find_spec("xllamacpp") is None:
        progress("decode_vs_llamacpp, gguf_bpb_delta left out: xllamacpp is missing (pip install 'agent-forge[dev]')")
        return []
    with tempfile.TemporaryDirectory() as folder:
        speeds = [_speed(Path(folder), form, memory, repetitions) for form in _HEADS]
        return [*speeds, *_quality(Path(folder), 60 if quick else 300)]


def _server(path: Path) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = _CONTEXT, 1, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(parameters)


def _speed(folder: Path, form: Format, memory: QuietMemory, repetitions: int) -> Figure:
    """Time greedy decoding behind the same past, wall clock, in turns; both have embedding and head in as many bits."""
    key, theirs_has = _HEADS[form]
    progress(f"decoding against llama.cpp, {form}")
    model = decoder("llama", form)
    write_gguf(model, train_tokenizer(["any words"] * 3, 300).to_str(), folder / "model.gguf")
    write_onnx(model, folder / "model.onnx")
    server, stream = _server(folder / "model.gguf"), OnnxModel(folder / "model.onnx").stream()
    ids = np.random.default_rng(0).integers(16, 30_000, _PAST).tolist()
    first = int(stream.read(ids).logits[-1].argmax())
    request = {"prompt": ids, "n_predict": _TOKENS, "temperature": 0.0, "ignore_eos": True, "cache_prompt": True}

    def in_turn(number: int) -> dict[str, float]:
        theirs = server.handle_completions(request)["timings"]["predicted_per_token_ms"] / 1e3
        stream.position, token, start = _PAST, first, time.perf_counter()
        for _ in range(_TOKENS):
            token = int(stream.read([token]).logits[-1].argmax())
        return {"llama.cpp": theirs, "ours": (time.perf_counter() - start) / _TOKENS}

    seconds = memory.rounds(in_turn, repetitions)
    what = f"llama.cpp TQ2_0 with a {theirs_has} embedding, tokens per second"
    return ratio_figure(key, seconds, "ours", "llama.cpp", goal=1.3, what=what)


def _quality(folder: Path, steps: int) -> list[Figure]:
    """Train a ternary LLaMA and measure it in torch, in our file and in llama.cpp on the same text."""
    progress(f"training a ternary LLaMA for {steps} steps")
    config = CorpusConfig(vocab_size=_VOCABULARY, max_bytes=4_000_000)
    corpus = prepare(config, seed=0, folder=folder / "corpus", progress=lambda stage, share: None)
    with torch_threads(1):
        network = _trained(corpus, steps)
        network.save_pretrained(folder / "llama")
        packed = read_llama(folder / "llama", QuantisationConfig())
        rows = corpus.tokens("test")[: 4 * (_LENGTH + 1)].reshape(4, -1).astype(np.int64)
        length = float(corpus.token_bytes[rows[:, 1:]].sum()) * np.log(2)
        in_torch = _torch_nats(network, torch.from_numpy(rows)) / length
    write_gguf(packed, (folder / "corpus" / "tokenizer.json").read_text(), folder / "trained.gguf")
    write_onnx(packed, folder / "trained.onnx")
    file = OnnxModel(folder / "trained.onnx")
    ours = sum(_nats(torch.from_numpy(file.stream().read(row[:-1].tolist()).logits), row[1:]) for row in rows) / length
    progress("asking llama.cpp for the probability of each token")
    server = _server(folder / "trained.gguf")
    theirs = sum(_their_nats(server, row) for row in rows) / length
    what = "torch, bits per byte"
    return [
        Figure(
            key=key,
            value=abs(value - in_torch),
            unit="bits per byte",
            better="lower",
            goal=goal,
            baseline=Baseline(what=what, value=in_torch),
        )
        for key, value, goal in (("gguf_bpb_delta", theirs, 0.005), ("onnx_bpb_delta", ours, 0.002))
    ]


def _trained(corpus: Corpus, steps: int) -> Any:
    """Return a Hugging Face LLaMA whose linear layers have been ternary all along."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    network = LlamaForCausalLM(shape)
    for name, layer in list(network.named_modules()):
        if name.endswith(_LINEAR):
            network.set_submodule(name, BitLinear(layer, ternarise, quantiser_for("block", layer.in_features, 2)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    for step in range(steps):
        rows = torch.from_numpy(corpus.batch(step, batch_size=8, seq_len=_LENGTH, mix={"text": 1.0}, seed=0))
        logits = network(rows[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    network.train(False)
    return network


@torch.no_grad()
def _torch_nats(network: Any, rows: Tensor) -> float:
    """Return the nats of rows (B, T + 1), the embedding as it is stored."""
    weight = network.get_input_embeddings().weight
    weight.copy_(quantise_rows(weight, 8).dequantise())
    logits = network(rows[:, :-1]).logits
    return sum(_nats(part, row[1:].numpy()) for part, row in zip(logits, rows, strict=True))


def _nats(logits: Tensor, targets: Any) -> float:
    return float(torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(targets), reduction="sum"))


def _their_nats(server: Any, row: Any) -> float:
    """Return the nats of a row of tokens, each asked for behind those before it."""
    total = 0.0
    for place in range(1, len(row)):
        request = {"prompt": row[:place].tolist(), "n_predict": 1, "n_probs": _VOCABULARY, "cache_prompt": True}
        answer = server.handle_completions(request | {"temperature": 1.0, "top_k": 0, "ignore_eos": False})
        content = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        total -= next(entry["logprob"] for entry in content if entry["id"] == int(row[place]))
    return total
