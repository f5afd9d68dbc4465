"""Spilled training: the same bits as in memory, what is saved is in files, and none is left."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from phases.training.config import TrainingConfig
from phases.training.loop import train
from phases.training.spill import spilled


class Mixed(nn.Module):
    """Attention, norms, dropout and views with odd strides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 96)
        self.qkv, self.norm, self.dropout = nn.Linear(96, 288), nn.RMSNorm(96), nn.Dropout(0.1)

    def loss(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.dropout(self.embedding(rows[:, :-1]))
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, 4, 24)).permute(2, 0, 3, 1, 4)
        h = h + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        gate = h[..., 1:].sigmoid() * h[:, :1, 1:].expand(-1, h.shape[1], -1)
        logits = (h + nn.functional.pad(gate, (1, 0))) @ self.embedding.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()), {}


def _trained() -> dict[str, Tensor]:
    model = Mixed()
    config = TrainingConfig(steps=4, batch_size=6, seq_len=33, warmup_steps=1, precision="fp32")

    def batch(step: int) -> Tensor:
        return torch.randint(0, 50, (6, 34), generator=torch.Generator().manual_seed(step))

    torch.manual_seed(1)
    train(model, batch, config, on_step=lambda step: None, save=lambda state: None)
    return dict(model.state_dict())


def test_the_bits_are_those_of_training_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, from_file = list[int](), torch.from_file

    def counted(path: str, *, size: int, **options: Any) -> Tensor:
        made.append(size)
        assert Path(path).parent == tmp_path
        return from_file(path, size=size, **options)

    wanted = _trained()
    monkeypatch.setattr(torch, "from_file", counted)
    with spilled(str(tmp_path)):
        found = _trained()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert sum(made) > 6 * 33 * 96  # floats: more than one activation of the width
    assert not list(tmp_path.iterdir())


def test_without_it_nothing_is_spilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "from_file", lambda *_, **__: pytest.fail("spilled"))
    _trained()


def test_a_copy_has_the_strides_and_the_place_in_a_cache_line(tmp_path: Path) -> None:
    base = torch.arange(4000.0).reshape(40, 100)
    x = torch.tensor(2.0, requires_grad=True)
    kept: list[Tensor] = []
    for view in (base[3:, 5:].T, base[:, 7:8].expand(40, 60), base.flip(0)):
        with spilled(str(tmp_path)):
            y = x * view
        kept = [saved for saved in (getattr(y.grad_fn, "_saved_other", None),) if saved is not None]
        assert kept
        assert torch.equal(kept[0], view)
        assert kept[0].stride() == view.stride()
        assert kept[0].data_ptr() % 64 == view.data_ptr() % 64
