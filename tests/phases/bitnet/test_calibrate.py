"""Calibrated thresholds: they depend on the data, lower the error that they are for, and are saved exactly."""

import pytest
import torch
from torch import Tensor

from phases.bitnet.calibrate import Statistics, collect, thresholds
from phases.bitnet.config import CalibrationConfig, QuantisationConfig
from phases.bitnet.ternary import ternarise
from phases.bitnet.titan import to_bitnet
from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError


def test_statistics_are_the_inputs_mean_squares(titan: TinyTitan, rows: Tensor) -> None:
    seen = list[Tensor]()
    hook = titan.blocks[0].qkv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    found = collect(titan, rows.split(2))
    hook.remove()
    wanted = torch.cat(seen).square().mean(0)
    torch.testing.assert_close(found.mean_squares["blocks.0.qkv.weight"], wanted)
    assert found.samples == 3
    assert not titan.blocks[0].qkv._forward_pre_hooks
    again = Statistics.from_bytes(found.to_bytes())
    assert again.samples == 3
    assert all(torch.equal(again.mean_squares[name], x) for name, x in found.mean_squares.items())


def test_thresholds_follow_the_data_and_lower_the_weighted_error(titan: TinyTitan, rows: Tensor) -> None:
    name, weight = "blocks.1.down.weight", titan.blocks[1].down.weight
    first, second = (collect(titan, [part]) for part in (rows[:1], rows[1:]))
    assert not torch.equal(thresholds(titan, first)[name], thresholds(titan, second)[name])
    importance = first.mean_squares[name]

    def error(threshold: Tensor | None) -> float:
        off = ternarise(weight, "least_squares", "row", threshold).dequantise() - weight
        return float((off.square() * importance).sum())

    assert error(thresholds(titan, first)[name]) < error(None)


def test_calibrated_model_uses_its_thresholds(titan: TinyTitan, rows: Tensor) -> None:
    config = QuantisationConfig(calibrated=True)
    low, high = (
        to_bitnet(titan, config, {"blocks.0.qkv.weight": torch.full((72, 1), share)}).quantised()
        for share in (0.3, 1.2)
    )
    assert low["blocks.0.qkv.weight"].zeros < 0.25 < 0.6 < high["blocks.0.qkv.weight"].zeros
    assert torch.equal(low["blocks.0.out.weight"].codes, high["blocks.0.out.weight"].codes)


def test_refuses_no_samples_and_counts_beyond_the_documented(titan: TinyTitan) -> None:
    with pytest.raises(ConfigError, match="nothing to calibrate"):
        collect(titan, [])
    for samples in (99, 10_001):
        with pytest.raises(ValueError, match="samples"):
            CalibrationConfig(samples=samples)
