"""The graph that is optimised computes what the published architecture does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import minilm
from phases.baking.optimise.session import SessionSettings, open_session

transformers = pytest.importorskip("transformers")


def test_the_graph_is_the_architecture(tmp_path: Path) -> None:
    weights = minilm.weights(None)
    rng = np.random.default_rng(1)
    for name, value in weights.items():
        if name.endswith("bias"):
            value += 0.1 * rng.standard_normal(value.shape).astype(np.float32)
    config = transformers.BertConfig(
        hidden_size=384, intermediate_size=1536, num_attention_heads=12, num_hidden_layers=6, layer_norm_eps=1e-12
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    missing, unexpected = model.load_state_dict({n: torch.from_numpy(v) for n, v in weights.items()}, strict=False)
    assert not [name for name in missing if not name.endswith("_ids")]
    assert all("bias" in name for name in unexpected)  # tables have none
    ids = torch.from_numpy(rng.integers(1000, 30000, (2, 9)))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    wanted = (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
    file = tmp_path / "model.onnx"
    minilm.write(file, weights)
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    for level in ("off", "all"):
        (found,) = open_session(file, SessionSettings(level=level)).run(None, feeds)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-4)
