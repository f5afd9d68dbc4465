"""T5, T6, T7 on stored outputs: quality is computed again from the outputs, predictions and data of a statement.

Roles of files: `outputs_before` and `outputs_after` (.npy or .safetensors, one row per input), `outputs_single` (the
same inputs one at a time), `predictions` (JSON lines with `predicted` and `expected`), `calibration` and `evaluation`
(text, one example a line).
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from phases.baking.validation import words
from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import Statement

MIN_COSINE = 0.9  # an embedding further off than this is broken, whatever the mean is
_OVERLAP = 0.005
_BATCH = 0.02  # share of the outputs' largest value
Rows = npt.NDArray[np.float64]


def check(statement: Statement) -> Iterator[Finding]:
    """Compute what a statement says about quality again from its files."""
    for part in (_outputs, _batch_invariance, _predictions, _leak, _range):
        for test, why, claimed, measured in part(statement):
            yield Finding.model_validate(
                {
                    "test": test,
                    "path": statement.source,
                    "where": statement.key,
                    "claimed": claimed,
                    "measured": measured,
                    "why": why,
                }
            )


_Problem = tuple[str, str, float | None, float | None]


def rows(path: Path) -> Rows:
    """Return stored outputs as (inputs, values)."""
    array = next(iter(load_file(path).values())) if path.suffix == ".safetensors" else np.load(path, allow_pickle=False)
    return np.asarray(array, np.float64).reshape(len(array), -1)


def cosines(before: Rows, after: Rows) -> Rows:
    """Return the cosine of each row with its counterpart; 0 where one is all zeros."""
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosine: Rows = np.divide((before * after).sum(axis=1), norms, out=np.zeros(len(before)), where=norms > 0)
    return cosine


def _outputs(statement: Statement) -> Iterator[_Problem]:
    before, after = (_rows(statement, role) for role in ("outputs_before", "outputs_after"))
    if after is None:
        return
    if not np.isfinite(after).all():
        yield "T6", "outputs that are not finite", None, float((~np.isfinite(after)).sum())
        return
    if len(after) >= 3 and (after == after[0]).all():
        yield "T7", f"the same output for all {len(after)} inputs", None, 1.0
    if before is None:
        return
    if before.shape != after.shape:
        why = f"outputs of shape {after.shape} against {before.shape}: less work was done"
        yield "T5", why, float(before.size), float(after.size)
        return
    found = cosines(before, after)
    least, mean = float(found.min()), float(found.mean())
    if "cosine" in words.parts(statement.key):
        wants_least = {"min", "least", "worst"} & set(words.parts(statement.key))
        measured = least if wants_least else mean
        if abs(statement.value - measured) > 1e-3:
            yield "T6", "the stored outputs give another cosine", statement.value, measured
    if least < MIN_COSINE:
        yield "T6", f"the worst output has a cosine of {least:.3f}; the mean of {mean:.3f} hides it", None, least


def _batch_invariance(statement: Statement) -> Iterator[_Problem]:
    together, alone = (_rows(statement, role) for role in ("outputs_after", "outputs_single"))
    if together is None or alone is None or together.shape != alone.shape:
        return
    scale, apart = float(np.abs(alone).max()), float(np.abs(together - alone).max())
    if apart > _BATCH * scale:
        yield "T6", "an input's output depends on the rest of its batch", 0.0, apart / scale


def _predictions(statement: Statement) -> Iterator[_Problem]:
    path = statement.at("predictions")
    if path is None or not path.exists() or not words.is_fraction(statement.key):
        return
    pairs = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    if not pairs:
        yield "T7", "no predictions in the evidence", statement.value, None
        return
    share = sum(pair["predicted"] == pair["expected"] for pair in pairs) / len(pairs)
    claimed = statement.value / 100 if statement.unit.strip() == "%" else statement.value
    if abs(claimed - share) > max(1e-3, 0.5 / len(pairs)):
        yield "T7", f"the {len(pairs)} stored predictions give another number", claimed, share
    if statement.n is not None and statement.n > len(pairs):
        yield "T7", "fewer predictions than claimed: some were left out", float(statement.n), float(len(pairs))


def _leak(statement: Statement) -> Iterator[_Problem]:
    calibration, evaluation = statement.at("calibration"), statement.at("evaluation")
    if calibration is None or evaluation is None or not (calibration.exists() and evaluation.exists()):
        return
    seen, asked = _lines(calibration), _lines(evaluation)
    share = len(seen & asked) / max(len(asked), 1)
    if share > _OVERLAP:
        yield "T6", "examples of the evaluation were used in calibration", 0.0, share


def _lines(path: Path) -> set[str]:
    texts = (" ".join(line.lower().split()) for line in path.read_text(errors="replace").splitlines())
    return {hashlib.sha256(text.encode()).hexdigest() for text in texts if text}


def _range(statement: Statement) -> Iterator[_Problem]:
    if not np.isfinite(statement.value):
        yield "T6", "the number is not finite", statement.value, None
    elif words.is_fraction(statement.key) and not statement.is_ratio:
        most = 100.0 if statement.unit.strip() == "%" or "percent" in words.parts(statement.key) else 1.0
        bounded = words.parts(words.last_part(statement.key))[-1] not in {"score", "retention"}
        if bounded and statement.unit.strip() in {"", "1", "%", "share"} and not 0 <= statement.value <= most:
            yield "T6", f"a share outside 0 to {most:g}", statement.value, None


def _rows(statement: Statement, role: str) -> Rows | None:
    path = statement.at(role)
    return rows(path) if path is not None and path.exists() else None
