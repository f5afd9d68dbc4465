"""The result of phase 6 says what of its parent is not in the baked model."""

from pathlib import Path

import torch

from phases import modeldir
from phases.baking.config import BakingConfig
from phases.baking.phase import Order
from phases.baking.result import _notes
from phases.contract import ModelRef


def test_a_parent_that_thinks_is_named(tmp_path: Path) -> None:
    parent = ModelRef(uri="04_bitnet/model", sha256="a" * 64, parameters=1)
    order = Order(str(tmp_path), parent, BakingConfig(), 0)
    assert _notes(order) == ()
    modeldir.save_model(
        order.path("04_bitnet/model/thinking"),
        tensors={"markers": torch.ones(2)},
        config={},
        tokenizer="{}",
        lineage=modeldir.Lineage(phase="bitnet", seed=0),
    )
    (note,) = _notes(order)
    assert "does not think; 04_bitnet/model" in note
