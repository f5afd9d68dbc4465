"""Probes are found by name and take the arguments that they declare."""

import json
from pathlib import Path

import pytest

from phases.contract import Probe
from phases.errors import ArtifactError
from phases.probes import Measurement, RunFiles, claim, measure, probe


@probe("test/length")
def length(files: RunFiles, path: str) -> Measurement:
    data = Path(files.path(path)).read_bytes()
    return Measurement(len(data), list(data))


def test_a_claim_states_what_its_probe_measures(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    made = claim(
        RunFiles(str(tmp_path)),
        "test/length",
        Probe(name="test/length", arguments={"path": "x"}),
        unit="bytes",
        better="lower",
        tolerance=0,
        samples_to="samples.json",
    )
    assert made.value == 3
    assert json.loads((tmp_path / "samples.json").read_text()) == list(b"abc")


def test_unknown_probes_and_arguments_are_named(tmp_path: Path) -> None:
    files = RunFiles(str(tmp_path))
    with pytest.raises(ArtifactError, match="probe test/none: not known"):
        measure(files, Probe(name="test/none"))
    with pytest.raises(ArtifactError, match="probe test/length: wrong arguments"):
        measure(files, Probe(name="test/length", arguments={"file": "x"}))
