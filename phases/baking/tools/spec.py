"""What a tool is: a name, what it does, and a JSON Schema of its parameters (draft 2020-12)."""

from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from pydantic import Field, field_validator

from phases.errors import ConfigError
from phases.settings import Settings


class ToolSpec(Settings):
    """A tool that a model may call."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    description: str = Field(min_length=1)
    parameters: dict[str, Any] = Field(description="JSON Schema of type object")

    @field_validator("parameters")
    @classmethod
    def _is_schema(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        """Raises `ConfigError` naming the part that is no JSON Schema."""
        try:
            Draft202012Validator.check_schema(parameters)
        except SchemaError as error:
            where = ".".join(map(str, ("parameters", *error.absolute_path)))
            raise ConfigError.of(where, error.instance, error.message, "write a JSON Schema (draft 2020-12)") from error
        if parameters.get("type") != "object" or not isinstance(parameters.get("properties"), dict):
            fix = 'write {"type": "object", "properties": {...}}'
            raise ConfigError.of("parameters", parameters, "does not describe named parameters", fix)
        if unknown := set(parameters.get("required", ())) - set(parameters["properties"]):
            fix = "describe each required parameter under properties"
            raise ConfigError.of("required", sorted(unknown), "not among the properties", fix)
        return parameters

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.parameters.get("required", ()))

    @property
    def properties(self) -> dict[str, Any]:
        return dict(self.parameters["properties"])

    def problems(self, arguments: dict[str, Any]) -> list[str]:
        """Return what is wrong with the arguments of a call; parameters that are not described are wrong, too."""
        found = [error.message for error in Draft202012Validator(self.parameters).iter_errors(arguments)]
        unknown = sorted(set(arguments) - set(self.properties))
        return found + [f"unexpected parameter {name}" for name in unknown]


RAG_QUERY = ToolSpec(
    name="rag_query",
    description="Find the passages of the local corpus that match a query best.",
    parameters={
        "type": "object",
        "properties": {
            "query": {"type": "string", "minLength": 1},
            "k": {"type": "integer", "minimum": 1, "maximum": 100, "description": "passages to return"},
        },
        "required": ["query"],
    },
)
CODE_EXECUTION = ToolSpec(
    name="code_execution",
    description="Run a short Python program without files, network or imports beyond a list; returns what it prints.",
    parameters={
        "type": "object",
        "properties": {"code": {"type": "string", "minLength": 1}},
        "required": ["code"],
    },
)
WEB_SEARCH = ToolSpec(
    name="web_search",
    description="Search the web; returns titles, addresses and snippets.",
    parameters={
        "type": "object",
        "properties": {
            "query": {"type": "string", "minLength": 1},
            "k": {"type": "integer", "minimum": 1, "maximum": 20, "description": "results to return"},
        },
        "required": ["query"],
    },
)
SPECS: dict[str, ToolSpec] = {spec.name: spec for spec in (RAG_QUERY, CODE_EXECUTION, WEB_SEARCH)}
