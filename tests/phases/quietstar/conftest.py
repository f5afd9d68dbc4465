"""Small TinyTitans whose tokens halt after different numbers of steps and whose memory is in use."""

from collections.abc import Callable

import pytest
import torch

from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig

ModelOf = Callable[..., TinyTitan]


@pytest.fixture(scope="session")
def model_of() -> ModelOf:
    """Return a function from a seed and changed settings to a model."""

    def build(seed: int = 0, **changes: object) -> TinyTitan:
        values = {"vocab_size": 280, "d_model": 24, "n_layers": 2, "n_heads": 2, "hidden": 32, "tied": True}
        values |= {
            "segment_len": 8,
            "train_ponder_steps": 3,
            "halt_threshold": 0.7,
            "memory": MemoryConfig(hidden=16, capacity=12, chunk=4, duplicate=0.95),
        }
        torch.manual_seed(seed)
        model = TinyTitan(TitanConfig.model_validate(values | changes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            torch.manual_seed(seed + 5)
            model.halting.linear.weight.normal_()
            model.halting.linear.bias.fill_(0.0)
        return model

    return build
