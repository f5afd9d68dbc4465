"""A model that is small enough to train inside a test, with a vocabulary of dialogues."""

import pytest
import torch
from tokenizers import Tokenizer

from phases.baking.instruct import dialogue_tokenizer
from phases.baking.lessons import LESSONS
from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return dialogue_tokenizer(LESSONS, 512)


@pytest.fixture
def titan() -> TinyTitan:
    torch.manual_seed(0)
    config = TitanConfig(
        vocab_size=512, d_model=32, n_layers=2, n_heads=2, hidden=64, tied=True, segment_len=128,
        max_ponder_steps=2, train_ponder_steps=2, memory=MemoryConfig(hidden=16),
    )  # fmt: skip
    model = TinyTitan(config).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(20)  # opinions, where random weights have none
        for parameter in model.memory.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))  # query and key start out the same
    return model
