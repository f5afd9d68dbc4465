"""The report is one page that stands alone, and what a model wrote cannot run in it."""

import json
import uuid
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from coordinators.report import write_report
from phases import modeldir, rundir, storage
from phases.contract import Baseline, Claim, PhaseResult, Probe
from phases.errors import ArtifactError
from phases.evomerge.search import write_search
from recovery.journal import Journal


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(params=["file", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    uri = str(tmp_path / "run") if request.param == "file" else f"memory://{uuid.uuid4().hex}/run"
    folder = rundir.phase_folder("cognate")
    ref = modeldir.save_model(
        storage.join(uri, folder, "model"),
        tensors={"w": torch.ones(3)},
        config={},
        tokenizer="{}",
        lineage=modeldir.Lineage(phase="cognate", seed=0, parents={"warm_up": "ab" * 32}),
    ).model_copy(update={"uri": f"{folder}/model"})
    probe = Probe(name="p")
    claims = (
        Claim(key="c/met", value=1, unit="bits", better="lower", tolerance=0, target=2, probe=probe),
        Claim(key="c/missed", value=3, unit="bits", better="lower", tolerance=0, target=2, probe=probe),
        Claim(
            key="c/worse",
            value=3,
            unit="bits",
            better="lower",
            tolerance=0,
            baseline=Baseline(what="xz", value=2),
            probe=probe,
        ),
    )
    now = datetime.now(UTC)
    result = PhaseResult(
        success=True,
        phase="cognate",
        model=ref,
        claims=claims,
        artifacts={"samples": f"{folder}/samples.json", "thoughts": f"{folder}/thoughts.json"},
        degraded=("agent x was isolated",),
        notes=("thoughts do not help <b>here</b>",),
        start_time=now,
        end_time=now,
        duration_seconds=1,
    )
    rundir.write_result(uri, result)
    sample = {
        "variant": "reasoning",
        "prompt": "<script>alert(1)</script>",
        "completion": "<img src=x onerror=alert(2)>",
    }
    storage.write_json(storage.join(uri, folder, "samples.json"), [sample])
    thought = {"text": "<script>alert(3)</script>", "thought": "so it is", "next": "open", "weight": 0.25}
    thought |= {"probability_without": 0.125, "probability_with": 0.5}
    storage.write_json(storage.join(uri, folder, "thoughts.json"), [thought])
    for step in (1, 2, 2):
        record = {"task": "reasoning", "step": step, "loss": 1 / step}
        storage.append_line(storage.join(uri, folder, "metrics.jsonl"), json.dumps(record))
    storage.write_bytes(storage.join(uri, "config.yaml"), b"seed: 7\n")
    Journal(uri).append("run_started", preset="x")
    return uri


def test_it_shows_claims_lineage_curves_and_samples(run: str) -> None:
    page = _Page()
    page.feed(storage.read_bytes(write_report(run)).decode())
    for shown in (
        "met: 2",
        "missed: 2",
        "worse",
        "abababababababab",
        "agent x was isolated",
        "alert(1)",
        "thoughts do not help <b>here</b>",
        "so it is",
        "alert(3)",
        "seed 7",
    ):
        assert shown in page.text
    assert any(tag == "svg" for tag, _ in page.tags)


def test_it_draws_the_evolution(run: str) -> None:
    history = [
        {"number": n, "best_fitness": 1 + n / 9, "average_fitness": 0.9, "diversity": 0.5 - n / 9} for n in range(3)
    ]
    write_search(run, {"history": history}, every=2)
    now = datetime.now(UTC)
    result = PhaseResult(success=True, phase="evomerge", model=None, start_time=now, end_time=now, duration_seconds=1)
    rundir.write_result(run, result)
    page = _Page()
    page.feed(storage.read_bytes(write_report(run)).decode())
    labels = [attributes.get("aria-label") for _, attributes in page.tags]
    assert "Fitness and diversity over the generations of the search" in labels
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    assert storage.names(storage.join(run, "02_evomerge/generations")) == [
        "evomerge_generation_0.json",
        "evomerge_generation_2.json",
    ]


def test_nothing_is_loaded_and_nothing_runs(run: str) -> None:
    page = _Page()
    page.feed(storage.read_bytes(write_report(run)).decode())
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "object"} & set(tags)
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert not str(attributes.get("xlink:href") or attributes.get("href") or "#").startswith("http")


def test_a_run_without_results_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no finished phase"):
        write_report(str(tmp_path))
