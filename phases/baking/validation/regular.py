"""T8: tables that are too regular to have been measured.

"Exactly 4.00x in every row" is what dividing by 4 gives; real int8 models carry scales and unquantised parts (3.96,
3.96, 3.85). Columns that are settings (batch sizes, bits, thread counts) may be as regular as they like: only columns
named after measured quantities are judged, each by a rule whose chance under honest measuring is below one in 10,000.
"""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np

from phases.baking.validation import words
from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import column, numeric_columns

_SAME_RATIO = 0.005
_BEFORE = words.vocabulary("before original fp32 float32 baseline base reference")
_AFTER = words.vocabulary("after compressed quantized quantised int8 int4 optimized optimised ours baked")
_MEASURED = words.vocabulary("ratio compression speed ms seconds mb time size acc tokens tps")
Row = dict[str, Any]


def check_table(name: str, rows: list[Row], source: str) -> Iterator[Finding]:
    """Judge a table of three or more rows."""
    columns = [key for key in numeric_columns(rows) if is_measured(key)]
    for why, claimed, measured in (
        *_same_ratio(rows, columns),
        *_regular_steps(rows, columns),
        *_same_digits(rows, columns),
        *_copied_rows(rows, columns),
        *_better_than_original(rows, columns),
    ):
        yield Finding(test="T8", path=source, where=name or "table", claimed=claimed, measured=measured, why=why)


def is_measured(key: str) -> bool:
    """Say whether a column holds measurements rather than settings."""
    found = words.parts(key)
    return words.is_metric(key) or bool(_MEASURED & set(found)) or bool((_BEFORE | _AFTER) & set(found[-1:]))


_Problem = tuple[str, float | None, float | None]


def _same_ratio(rows: list[Row], columns: list[str]) -> Iterator[_Problem]:
    series = {key: column(rows, key) for key in columns if {"ratio", "compression", "speedup"} & set(words.parts(key))}
    for before, after in combinations(columns, 2):
        if _is_pair(before, after):
            over = zip(column(rows, before), column(rows, after), strict=True)
            series[f"{before} / {after}"] = [a / b if b else math.nan for a, b in over]
    for key, values in series.items():
        whole = round(values[0])
        if whole >= 3 and all(abs(value - whole) <= _SAME_RATIO * whole for value in values):
            yield f"{key} is {whole}.00 in every one of {len(values)} rows: divided, not measured", float(whole), None


def _is_pair(before: str, after: str) -> bool:
    first, second = set(words.parts(before)), set(words.parts(after))
    return bool(_BEFORE & first and _AFTER & second) and first - _BEFORE == second - _AFTER


def _regular_steps(rows: list[Row], columns: list[str]) -> Iterator[_Problem]:
    for key in columns:
        values = sorted(column(rows, key))
        steps = np.diff(values)
        if len(values) >= 5 and steps[0] > 0 and np.ptp(steps) <= 1e-9 * max(map(abs, values)) and _is_real(values):
            yield f"{key} grows by the same step in all {len(values)} rows", None, float(steps[0])


def _same_digits(rows: list[Row], columns: list[str]) -> Iterator[_Problem]:
    for key in columns:
        values = column(rows, key)
        ends = [_decimals(value) for value in values]
        if len(set(values)) < len(values) or not _is_real(values):
            continue
        if len(values) >= 3 and len(set(ends)) == 1 and len(ends[0]) >= 2:
            yield f"{key} has the digits .{ends[0]} in every one of {len(values)} rows", None, None
        elif len(values) >= 8 and len(ends[0]) >= 2 and all(end[-1:] in {"5", ""} or len(end) < 2 for end in ends):
            yield f"{key}: every one of {len(values)} values is a multiple of .05", None, None


def _copied_rows(rows: list[Row], columns: list[str]) -> Iterator[_Problem]:
    if len(columns) < 3:
        return
    for first, second in combinations(range(len(rows)), 2):
        values = [rows[first][key] for key in columns]
        if _is_real(values) and len(set(values)) >= 3 and values == [rows[second][key] for key in columns]:
            yield (
                f"rows {first + 1} and {second + 1} have the same {len(columns)} measurements to the last digit",
                None,
                None,
            )


def _better_than_original(rows: list[Row], columns: list[str]) -> Iterator[_Problem]:
    qualities = [key for key in columns if {"accuracy", "acc", "recall", "f1"} & set(words.parts(key))]
    for before, after in combinations(qualities, 2):
        if _is_pair(before, after) and len(rows) >= 4:
            pairs = list(zip(column(rows, before), column(rows, after), strict=True))
            if all(b > a for a, b in pairs):
                yield f"{after} is above {before} in every one of {len(rows)} rows", None, None


def _is_real(values: list[float]) -> bool:
    """Say whether some value is no whole number: counts may be regular."""
    return any(isinstance(value, float) and not value.is_integer() for value in values)


def _decimals(value: float) -> str:
    return np.format_float_positional(value).partition(".")[2].rstrip("0")  # never with an exponent
