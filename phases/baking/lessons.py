"""How a tool is taught: its specification, what people say when they want it, and the call that serves them.

A lesson is a template with values to fill in, so that a program knows the right call for every request it draws. The
values at even places of each list are used in baking, those at odd ones only to measure: a held-out request has no
value that baking has seen. Tools of one's own come from a JSON file of lessons and are taught like the three built in.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from phases.baking.tools.calls import ToolCall
from phases.baking.tools.spec import CODE_EXECUTION, RAG_QUERY, WEB_SEARCH, ToolSpec
from phases.errors import ConfigError
from phases.settings import Settings

Part = Literal["all", "baking", "held_out"]
TOPICS = (
    "amber", "basalt", "cedar", "delta", "ember", "falcon", "granite", "harbor", "indigo", "jasper", "kelp", "lotus",
    "marble", "nectar", "onyx", "pearl", "quartz", "river", "saffron", "timber", "umber", "velvet", "walnut", "zinc",
)  # fmt: skip
NUMBERS = tuple(str(number) for number in range(10, 50))
_FIELD = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_MAX_REQUEST = 200  # characters


class Lesson(Settings):
    """A tool and how it is asked for. `{field}`s of `request` and `arguments` are filled from `values`."""

    spec: ToolSpec
    request: str = Field(min_length=1, max_length=_MAX_REQUEST)
    arguments: dict[str, str] = Field(description="parameter -> template of its value")
    values: dict[str, tuple[str, ...]] = Field(description="field -> at least two values")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        fields = set(_FIELD.findall(self.request))
        for name in sorted(fields | {f for text in self.arguments.values() for f in _FIELD.findall(text)}):
            if name not in fields or len(self.values.get(name, ())) < 2:
                fix = "name each field in the request and give it at least two values"
                raise ConfigError.of(f"{self.spec.name}.values", name, "cannot be filled in and held out", fix)
        for place in (0, 1):
            call = self.call({name: values[place] for name, values in self.values.items()})
            if problems := self.spec.problems(call.arguments):
                fix = "make arguments and values fit the tool's JSON Schema"
                raise ConfigError.of(f"{self.spec.name}.arguments", call.arguments, "; ".join(problems), fix)
        return self

    def draw(self, rng: np.random.Generator, part: Part) -> dict[str, str]:
        """Return a value for each field."""
        return {name: str(rng.choice(of_part(values, part))) for name, values in self.values.items()}

    def asked(self, filled: Mapping[str, str]) -> str:
        """Return the request with its fields filled in."""
        return self.request.format(**filled)

    def call(self, filled: Mapping[str, str]) -> ToolCall:
        """Return the call that serves it; a parameter that is a number in the schema gets one."""
        arguments = {name: _typed(text.format(**filled), self.spec, name) for name, text in self.arguments.items()}
        return ToolCall(self.spec.name, arguments)


def of_part(values: Sequence[str], part: Part) -> Sequence[str]:
    """Return the values that belong to a part."""
    return {"all": values, "baking": values[::2], "held_out": values[1::2]}[part]


def _typed(text: str, spec: ToolSpec, parameter: str) -> Any:
    kind = spec.properties.get(parameter, {}).get("type")
    try:
        return int(text) if kind == "integer" else float(text) if kind == "number" else text
    except ValueError:
        return text  # the schema refuses it, with a message of its own


RAG = Lesson(
    spec=RAG_QUERY, request="look up {query} in the notes", arguments={"query": "{query}"}, values={"query": TOPICS}
)
CODE = Lesson(
    spec=CODE_EXECUTION,
    request="compute {a} * {b}",
    arguments={"code": "print({a} * {b})"},
    values={"a": NUMBERS, "b": NUMBERS},
)
WEB = Lesson(
    spec=WEB_SEARCH, request="search the web for {query}", arguments={"query": "{query}"}, values={"query": TOPICS}
)
LESSONS: dict[str, Lesson] = {lesson.spec.name: lesson for lesson in (RAG, CODE, WEB)}


def read_lessons(source: str) -> dict[str, Lesson]:
    """Return the lessons of a JSON file, or those built in by names with commas between.

    Raises `ConfigError` naming a tool that is not known, a file that is not JSON, or a schema that is no JSON Schema.
    """
    if not source.strip():
        raise ConfigError.of("tools", source, "names no tool", f"name some of {', '.join(LESSONS)}, or a JSON file")
    if source.endswith(".json"):
        return _from_file(Path(source))
    names = [name.strip() for name in source.split(",")]
    if unknown := [name for name in names if name not in LESSONS]:
        fix = f"choose among {', '.join(LESSONS)}, or name a JSON file of lessons"
        raise ConfigError.of("tools", unknown[0], "no such tool", fix)
    return {name: LESSONS[name] for name in names}


def _from_file(file: Path) -> dict[str, Lesson]:
    fix = 'write [{"spec": {name, description, parameters}, "request": ..., "arguments": {...}, "values": {...}}]'
    try:
        entries = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError.of("tools", str(file), f"no readable JSON ({error})", fix) from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError.of("tools", str(file), "is no list of lessons", fix)
    lessons = dict[str, Lesson]()
    for number, entry in enumerate(entries):
        try:
            lesson = Lesson.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
                raise cause from error
            where = ".".join(str(part) for part in (number, *first["loc"]))
            raise ConfigError.of(f"tools[{where}]", first["input"], first["msg"], fix) from error
        if lesson.spec.name in lessons:
            raise ConfigError.of("tools", lesson.spec.name, "is there twice", "give each tool its own name")
        lessons[lesson.spec.name] = lesson
    return lessons
