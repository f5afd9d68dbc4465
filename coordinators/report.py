"""`report.html`: one self-contained page about a run, from its files alone.

It shows the claims beside baselines and targets, the lineage of the models by hash, curves, sample generations and
what happened when. Nothing is loaded from elsewhere, and whatever a model wrote is escaped.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure

from phases import modeldir, rundir, storage
from phases.contract import PhaseResult
from phases.errors import ArtifactError
from phases.evomerge.search import read_search
from recovery.journal import Journal

_TITLES = {
    "cognate": "Cognate",
    "evomerge": "EvoMerge",
    "quietstar": "Quiet-STaR",
    "bitnet": "BitNet",
    "baking": "Baking",
}
_TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(run: str) -> str:
    """Write the report of a run and return where it is. Raises `ArtifactError` where no phase has finished."""
    phases = rundir.finished_phases(run)
    if not phases:
        raise ArtifactError(f"{run}: no finished phase to report; `forge status {run}` tells how far the run is")
    results = [rundir.read_result(run, phase) for phase in phases]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=storage.folder_name(run),
        results=results,
        titles=_TITLES,
        lineage=_lineage(run, results),
        plots=list(_plots(run, phases)),
        samples=[sample for result in results for sample in _stored(run, result, "samples")],
        thoughts=[thought for result in results for thought in _stored(run, result, "thoughts")],
        events=list(Journal(run).read()),
        config=storage.read_bytes(storage.join(run, "config.yaml")).decode(),
        seed=yaml.safe_load(storage.read_bytes(storage.join(run, "config.yaml")))["seed"],
    )
    uri = storage.join(run, "report.html")
    storage.write_bytes(uri, page.encode())
    return uri


def _lineage(run: str, results: list[PhaseResult]) -> list[dict[str, Any]]:
    """Return the models of a run with their parents."""
    rows = []
    for result in results:
        handed_on = {"handed on": result.model} if result.model is not None else {}
        for role, ref in (result.models | handed_on).items():
            lineage = modeldir.load_lineage(storage.join(run, ref.uri))
            rows.append({"role": role, "ref": ref, "parents": lineage.parents, "code": lineage.code_version})
    return rows


def _stored(run: str, result: PhaseResult, name: str) -> list[dict[str, Any]]:
    path = result.artifacts.get(name)
    return list(storage.read_json(storage.join(run, path))) if path else []


@dataclass(frozen=True)
class _Plot:
    """A figure as inline SVG, with its heading and what it shows in words."""

    title: str
    label: str
    svg: Markup


def _plots(run: str, phases: list[str]) -> Iterator[_Plot]:
    """Yield the figures of the phases that have something to draw."""
    for phase, title, label, draw in _FIGURES:
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "forge"}):
            if phase in phases and draw(run, figure):
                buffer = io.StringIO()
                figure.savefig(buffer, format="svg", metadata={"Date": None})
                svg = buffer.getvalue()
                yield _Plot(title, label, Markup(svg[svg.index("<svg") :]))


def _draw_losses(phase: str, run: str, figure: Figure) -> bool:
    """Draw each model's loss, every step faintly and a running mean. A resumed run's repeated steps count once."""
    path = storage.join(run, rundir.phase_folder(phase), "metrics.jsonl")
    if not storage.exists(path):
        return False
    losses: dict[str, dict[int, float]] = {}
    for line in storage.read_bytes(path).decode().splitlines():
        record = json.loads(line)
        losses.setdefault(record["task"], {})[record["step"]] = record["loss"]
    axes = figure.subplots()
    for number, (task, values) in enumerate(losses.items()):
        steps = sorted(values)
        raw = np.array([values[step] for step in steps])
        window = max(1, len(raw) // 12)
        means = np.convolve(raw, np.ones(window) / window, mode="valid")
        axes.plot(steps, raw, color=f"C{number}", linewidth=0.7, alpha=0.25)
        axes.plot(steps[window - 1 :], means, color=f"C{number}", label=task, linewidth=1.8)
    axes.set(xlabel="optimiser step", ylabel="training loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return True


def _draw_evolution(run: str, figure: Figure) -> bool:
    """Draw fitness and diversity over the generations of the winning search."""
    found = read_search(run)
    if found is None:
        return False
    history = found["history"]
    numbers = [generation["number"] + 1 for generation in history]
    fitness, diversity = figure.subplots(1, 2)
    for key, name in (("best_fitness", "best"), ("average_fitness", "mean")):
        fitness.plot(numbers, [generation[key] for generation in history], label=name, linewidth=1.8)
    fitness.axhline(1, color="0.6", linewidth=0.8, linestyle="--", label="best parent")
    fitness.set(xlabel="generation", ylabel="fitness")
    fitness.legend(frameon=False)
    diversity.plot(numbers, [generation["diversity"] for generation in history], color="C2", linewidth=1.8)
    diversity.set(xlabel="generation", ylabel="diversity, parents' largest distance", ylim=(0, None))
    for axes in (fitness, diversity):
        axes.spines[["top", "right"]].set_visible(False)
    return True


_FIGURES = (
    ("cognate", "Training", "Training loss of each model over optimiser steps", partial(_draw_losses, "cognate")),
    ("evomerge", "Evolution", "Fitness and diversity over the generations of the search", _draw_evolution),
    ("quietstar", "Thinking", "Training loss with thoughts and without", partial(_draw_losses, "quietstar")),
    ("bitnet", "Quantisation", "Training loss of candidates and controls over steps", partial(_draw_losses, "bitnet")),
    ("baking", "Baking", "Training loss of following prompts, and of baking one", partial(_draw_losses, "baking")),
)
