"""Scoring of tool calls by abstract syntax, after the Berkeley Function-Calling Leaderboard (Patil et al. 2024).

A call is right if it names the right function, gives every required parameter and none that the function does not have,
each of the right type and with an accepted value. Strings are compared without case, spaces and punctuation. Several
calls may come in any order; each expected call needs a call of its own. Where no tool applies, the right answer is no
call (irrelevance).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from phases.baking.tools.calls import Malformed, ToolCall
from phases.baking.tools.spec import ToolSpec

_DROPPED = re.compile(r"[ ,./\-_*^]")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Expected:
    """A call that should be made: the accepted values of each parameter, and the parameters that may be left out."""

    name: str
    accepted: Mapping[str, Sequence[Any]]
    optional: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Score:
    """Whether an answer is right, and what is wrong with it."""

    right: bool
    problems: tuple[str, ...] = ()


def score(calls: Sequence[ToolCall | Malformed], expected: Sequence[Expected], specs: Mapping[str, ToolSpec]) -> Score:
    """Compare the calls of an answer with those expected; nothing expected means that no tool applies."""
    problems = [f"malformed call: {call.problem}" for call in calls if isinstance(call, Malformed)]
    made = [call for call in calls if isinstance(call, ToolCall)]
    if not expected:
        problems += [f"called {call.name} although no tool applies" for call in made]
        return Score(not problems, tuple(problems))
    if len(made) != len(expected):
        problems.append(f"{len(made)} calls, expected {len(expected)}")
    table = [[call_problems(call, want, specs) for call in made] for want in expected]
    unmatched = _unmatched([[not cell for cell in row] for row in table])
    for number in unmatched:
        closest = min(table[number], key=len, default=["not called"])
        problems += [f"{expected[number].name}: {problem}" for problem in closest] or [
            f"{expected[number].name}: called once, expected more often"
        ]
    return Score(not problems, tuple(problems))


def call_problems(call: ToolCall, expected: Expected, specs: Mapping[str, ToolSpec]) -> list[str]:
    """Return what is wrong with a call, were it meant to be the expected one."""
    if call.name != expected.name:
        return [f"wrong function {call.name}"]
    spec = specs[expected.name]
    found = [
        f"missing parameter {name}"
        for name in dict.fromkeys((*spec.required, *expected.accepted))
        if name not in call.arguments and (name in spec.required or name not in expected.optional)
    ]
    for name, value in call.arguments.items():
        if name not in spec.properties:
            found.append(f"unexpected parameter {name}")
        elif not has_type(value, spec.properties[name]):
            found.append(f"{name} has the wrong type")
        elif name not in expected.accepted:
            found.append(f"{name} was not asked for")
        elif not any(same_value(value, accepted) for accepted in expected.accepted[name]):
            found.append(f"{name} has the wrong value")
    return found


def has_type(value: Any, schema: Mapping[str, Any]) -> bool:
    """Say whether a value has the type that a parameter's schema names; an integer is a number, a boolean is not."""
    named = schema.get("type")
    if named is None:
        return True
    names = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in names if name != "boolean")


def same_value(value: Any, accepted: Any) -> bool:
    """Compare two values: strings as `normalised`, lists and objects part by part, all else exactly."""
    if isinstance(value, str) and isinstance(accepted, str):
        return normalised(value) == normalised(accepted)
    if isinstance(value, list) and isinstance(accepted, list):
        return len(value) == len(accepted) and all(map(same_value, value, accepted))
    if isinstance(value, dict) and isinstance(accepted, dict):
        return value.keys() == accepted.keys() and all(same_value(value[key], accepted[key]) for key in value)
    return isinstance(value, bool) == isinstance(accepted, bool) and bool(value == accepted)


def normalised(text: str) -> str:
    """Return a string without case, spaces and ,./-_*^, with double quotes for single ones."""
    return _DROPPED.sub("", text).lower().replace("'", '"')


def _unmatched(fits: list[list[bool]]) -> list[int]:
    """Return the rows left over by a largest matching of rows to columns (augmenting paths)."""
    owner = dict[int, int]()

    def place(row: int, tried: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    for row in range(len(fits)):
        place(row, set())
    return sorted(set(range(len(fits))) - set(owner.values()))


def wilson(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of a rate (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, spread = right / total, z * z / total
    middle = (rate + spread / 2) / (1 + spread)
    half = z * ((rate * (1 - rate) + spread / 4) / total) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
