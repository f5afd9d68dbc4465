"""Equal inputs have equal hashes in every process, and different ones do not."""

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from phases.errors import ConfigError
from recovery.inputs import input_hash


class Colour(Enum):
    RED = "red"


class Model(BaseModel):
    name: str = "x"


@dataclass
class Record:
    model: Model
    path: Path


class Other(Model):
    pass


def test_any_difference_counts_and_order_does_not() -> None:
    def arguments(changes: dict[str, Any]) -> dict[str, Any]:
        nested = {"when": datetime(2026, 1, 2, tzinfo=UTC), "of": {Colour.RED}, "record": Record(Model(), Path("a/b"))}
        arrays = {"array": np.arange(3), "tensor": torch.ones(2, dtype=torch.bfloat16)}
        return {"a": 1, "b": nested, "of": (1, 2.5, None)} | arrays | changes

    again = dict(reversed(arguments({}).items()))
    assert input_hash(arguments({})) == input_hash(again)
    changes: list[dict[str, Any]] = [{"a": 2}, {"a": "1"}, {"of": [1, 2.5]}, {"b": Model()}, {"b": Other()}]
    changes += [{"array": np.arange(3.0)}, {"tensor": torch.ones(2)}, {"tensor": torch.ones(2, 1)}]
    assert len({input_hash(arguments(change)) for change in [{}, *changes]}) == len(changes) + 1
    with pytest.raises(ConfigError, match="object has no canonical form"):
        input_hash({"a": object()})


def test_another_process_agrees() -> None:
    script = "from recovery.inputs import input_hash; print(input_hash({'b': {'x', 'y', 'z'}, 'a': 1.5}))"
    answers = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert answers == {input_hash({"a": 1.5, "b": {"x", "y", "z"}})}
