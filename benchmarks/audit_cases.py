"""Planted frauds and their honest twins: what a case is, and where cases register.

A case builds one subject twice from the same random numbers: as a fraud, and as a twin that differs only in the cheat.
Names and numbers vary with the seed, so that no detector can know them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phases import storage
from phases.baking.validation import Finding, audit
from phases.baking.validation.finding import TestName

Rng = np.random.Generator
Subject = Callable[[Path, Rng, bool], list[Finding]]
CASES: list["Case"] = []
MODELS = ("bert-base", "vit-b16", "resnet50", "minilm-l6", "tiny-cnn", "gpt-nano")


@dataclass(frozen=True)
class Case:
    """A fraud that `test` should refute. `subject(folder, rng, fraud)` builds it and returns what the audit found."""

    name: str
    test: TestName
    subject: Subject


def report(name: str, test: TestName) -> Callable[[Callable[[Path, Rng, bool], Any]], None]:
    """Register a builder that returns a report; it may put evidence beside it."""

    def register(build: Callable[[Path, Rng, bool], Any]) -> None:
        def subject(folder: Path, rng: Rng, fraud: bool) -> list[Finding]:
            storage.write_json(str(folder / "summary.json"), build(folder, rng, fraud))
            return list(audit(folder / "summary.json").findings)

        CASES.append(Case(name, test, subject))

    return register


def model(name: str, test: TestName) -> Callable[[Callable[[Path, Rng, bool], None]], None]:
    """Register a builder that writes a model directory."""

    def register(build: Callable[[Path, Rng, bool], None]) -> None:
        def subject(folder: Path, rng: Rng, fraud: bool) -> list[Finding]:
            build(folder, rng, fraud)
            return list(audit(folder).findings)

        CASES.append(Case(name, test, subject))

    return register


def code(name: str, test: TestName, source: str, fraud: str, honest: str, file: str = "work.py") -> None:
    """Register a Python file: `source` with CHEAT replaced by the lines of `fraud` or of `honest`."""

    def subject(folder: Path, rng: Rng, is_fraud: bool) -> list[Finding]:
        line = next(line for line in source.splitlines() if "CHEAT" in line)
        margin = line[: line.index("CHEAT")]
        lines = (fraud if is_fraud else honest).strip("\n").splitlines()
        text = source.replace("CHEAT", f"\n{margin}".join(lines) if not margin.strip() else lines[0])
        drawn = {"RATE": f"{rng.uniform(0.6, 0.99):.3f}", "FACTOR": f"{rng.uniform(1.5, 8):.2f}"}
        for key, value in drawn.items():
            text = text.replace(key, value)
        (folder / file).write_text(text)
        return list(audit(folder / file).findings)

    CASES.append(Case(name, test, subject))


def call(name: str, test: TestName) -> Callable[[Callable[[Rng, bool], list[Finding]]], None]:
    """Register a check of something that can be called."""

    def register(check: Callable[[Rng, bool], list[Finding]]) -> None:
        CASES.append(Case(name, test, lambda folder, rng, fraud: check(rng, fraud)))

    return register
