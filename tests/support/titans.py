"""TinyTitans so small that everything about them is fast, yet with ponder steps, memory and a padded last block."""

from pathlib import Path

import torch

from phases.bitnet.onnx_export import to_onnx
from phases.bitnet.packed import PackedModel
from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig


def small(**changes: object) -> TinyTitan:
    """Return a model with random weights, the same each time."""
    torch.manual_seed(0)
    config = TitanConfig(
        vocab_size=300,
        d_model=24,
        n_layers=2,
        n_heads=2,
        hidden=150,
        tied=True,
        segment_len=16,
        memory=MemoryConfig(hidden=40, capacity=8),
    )
    return TinyTitan(config.model_copy(update=changes))


def talkative(**changes: object) -> TinyTitan:
    """Return a random model of pronounced opinions, whose tokens halt at different steps."""
    model = small(**{"train_ponder_steps": 3, "halt_threshold": 0.8} | changes)
    with torch.no_grad():
        for layer in (model.embedding, model.head):
            if layer is not None:
                layer.weight.mul_(20)
        model.halting.linear.weight.normal_(std=0.3)
        model.halting.linear.bias.fill_(0.5)
        model.step_embedding.normal_(std=0.5)
    return model.eval()


def with_cache_in_floats(packed: PackedModel, folder: Path, *, exact: bool = False) -> Path:
    """Write a file that rounds nothing but activations; one with a cache in int8 is near (`test_cache_steps.py`)."""
    (folder / "model.onnx").write_bytes(to_onnx(packed, exact=exact).SerializeToString())
    return folder / "model.onnx"
