"""The result of phase 6 says what of its parent is not in the baked model, and claims what its sample shows."""

import math
from pathlib import Path

import pytest
import torch

from phases import modeldir, storage
from phases.baking.config import BakingConfig
from phases.baking.phase import Order
from phases.baking.result import SUMMARY, _notes, reliability
from phases.baking.validation import audit
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


def _log(finished: int, failed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    started = [{"kind": "task_started"}] * (finished + failed)
    return [*started, *[{"kind": "task_finished"}] * finished], [{"kind": "recovery"}] * failed


def test_reliability_is_what_its_sample_shows() -> None:
    few, many, failed = (reliability(*_log(*counts)) for counts in ((13, 0), (2996, 0), (2996, 1)))
    assert (few["n"], few["failures"]) == (13, 0)
    assert few["value"] == pytest.approx(100 * (1 + math.log(0.05) / 13))
    assert "99.9% takes 2,996 clean runs" in few["text"]
    assert many["value"] >= 99.9 > reliability(*_log(2995, 0))["value"]
    assert failed["value"] < 99.9
    assert "1 of 2997 failed" in failed["text"]


@pytest.mark.parametrize(("claimed", "refuted"), [(None, []), (99.9, ["T11"])])
def test_the_audit_judges_the_summary_by_its_sample(tmp_path: Path, claimed: float | None, refuted: list[str]) -> None:
    stated = reliability(*_log(13, 0))
    folder = tmp_path / "06_baking"
    storage.write_json(str(folder / SUMMARY), {"results": [stated | ({"value": claimed} if claimed else {})]})
    (tmp_path / "journal").mkdir()
    (tmp_path / "config.yaml").write_text("name: test\n")
    assert [finding.test for finding in audit(tmp_path).findings] == refuted
