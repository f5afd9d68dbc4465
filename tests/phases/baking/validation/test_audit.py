"""The audit as a whole: what it accepts, how it reports, and that it finds one fraud of each kind of subject."""

import json

import pytest
import torch

from phases import modeldir
from phases.baking.validation import Report, audit, audit_apart
from phases.errors import ArtifactError
from phases.modeldir import Lineage


def _model(folder, tensors, config):
    lineage = Lineage(phase="baking", seed=0, code_version="1")
    modeldir.save_model(str(folder), tensors=tensors, config=config, tokenizer="{}", lineage=lineage)


def test_a_model_of_floats_that_claims_eight_bits_is_refuted(tmp_path):
    _model(tmp_path, {"up": torch.randn(64, 2048)}, {"quantization": {"bits": 8}})
    report = audit(tmp_path)
    assert [(finding.test, finding.where, finding.claimed) for finding in report.findings] == [("T1", "up", 256.0)]
    assert report.checked["tensors"] == 1
    assert not report.clean


def test_an_honest_model_is_clean_and_says_what_was_looked_at(tmp_path):
    _model(tmp_path, {"up": torch.randn(64, 48)}, {})
    report = audit(tmp_path)
    assert report.clean
    assert report.checked["bytes"] == 64 * 48 * 4


def test_a_torn_weights_file_is_a_finding_and_no_crash(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    assert [finding.test for finding in audit(tmp_path).findings] == ["T1"]


def test_code_is_parsed_and_never_executed(tmp_path):
    (tmp_path / "bad.py").write_text("raise SystemExit\ndef evaluate(m):\n    return 0.93\n")
    assert [(finding.test, finding.where) for finding in audit(tmp_path).findings] == [("T9", "2")]


def test_code_that_cannot_be_parsed_is_a_finding(tmp_path):
    (tmp_path / "bad.py").write_text("def (")
    assert [finding.test for finding in audit(tmp_path / "bad.py").findings] == ["T1"]


def test_a_folder_of_reports_is_audited_report_by_report(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"reliability_percent": 99.9, "runs": 10}))
    report = audit(tmp_path)
    assert report.checked["reports"] == 2
    assert report.by_test()["T11"] == 2


def test_the_report_survives_json(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"uptime": 0.999}))
    report = audit(tmp_path / "r.json")
    assert Report.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("name", ["missing", "empty", "notes.txt", "torn.json"])
def test_what_cannot_be_audited_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "torn.json").write_text('{"a": ')
    with pytest.raises(ArtifactError, match=name):
        audit(tmp_path / name)


@pytest.mark.slow
def test_a_fresh_process_finds_the_same(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"availability": 0.999, "runs": 100}))
    assert audit_apart(tmp_path / "r.json") == audit(tmp_path / "r.json")
