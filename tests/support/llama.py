"""Small directories as Hugging Face writes them."""

from pathlib import Path

import pytest
import torch

SHAPE = {
    "vocab_size": 200,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 512,
}


def write_llama(folder: Path, kind: str, tied: bool) -> torch.nn.Module:
    """Write a random model of a kind (llama, qwen2) and return it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = {"llama": "Llama", "qwen2": "Qwen2"}
    config = getattr(transformers, f"{names[kind]}Config")(**SHAPE, tie_word_embeddings=tied)
    model = getattr(transformers, f"{names[kind]}ForCausalLM")(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    return model
