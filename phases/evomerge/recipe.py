"""Merge recipes: mergekit's YAML, read into one normal form whose every part remembers where in the file it stands.

`models:` is one slice over all layers and `modules:` with one entry is its content, so that what follows knows slices
only. A parameter may be a value, a list (a gradient over the layers of the slice) or rules with a `filter`, a part of a
tensor's name, of which the first that hits counts. Unknown keys are errors; a typo must not become a default.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import yaml
from pydantic import Field, PlainValidator, TypeAdapter, ValidationError

from phases.errors import ConfigError
from phases.settings import Settings

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_REFUSED = {
    "chat_template": "put the template into the tokenizer's own files",
    "tokens": "embeddings of single tokens are not rearranged; remove it",
    "pad_to_multiple_of": "vocabularies are not padded; remove it",
    "residual_weight": "remove it, nothing uses it any more",
}
_KINDS: dict[str, TypeAdapter[Any]] = {"float": TypeAdapter(float), "int": TypeAdapter(int), "bool": TypeAdapter(bool)}

Scalar = bool | int | float | str


class Rule(NamedTuple):
    """A value, or a gradient over the layers, for the tensors whose name contains `filter` (None: all)."""

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None


Setting = tuple[Rule, ...]


class Scope(NamedTuple):
    """Parameters and their place in the file."""

    where: str
    settings: dict[str, Setting]


@dataclass(frozen=True)
class Source:
    """A model that goes into a slice: `layers` is the half-open range, None for all."""

    model: str
    layers: tuple[int, int] | None
    scope: Scope


@dataclass(frozen=True)
class Slice:
    """Layers of the result that are merged from the same sources."""

    sources: tuple[Source, ...]
    base_model: str | None
    scope: Scope


@dataclass(frozen=True)
class Recipe:
    """A recipe in normal form; `shared` are the scopes behind those of slice and source, `raw` the file's content."""

    file: str
    method: str
    base_model: str | None
    slices: tuple[Slice, ...]
    sliced: bool
    shared: tuple[Scope, ...]
    dtype: torch.dtype | None
    out_dtype: torch.dtype | None
    tokenizer_source: str | None
    raw: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Read a YAML file. Raises `ConfigError` naming file, key, value and fix."""
        try:
            raw = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            raise ConfigError.of(
                "recipe", str(path), "cannot be read", f"name a readable YAML file ({error})"
            ) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML ({error})") from error
        return cls.parse(raw, str(path))

    @classmethod
    def parse(cls, raw: Any, file: str = "recipe") -> "Recipe":
        """Validate the content of a recipe, e.g. from a lineage."""
        try:
            document = _Document.model_validate(raw)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(file, item) for item in error.errors())) from error
        where, module = _one_module(file, document)
        slices = _normal_slices(where, document, module)
        tokenizer = document.tokenizer.source if document.tokenizer else document.tokenizer_source
        return cls(
            file=file,
            method=document.merge_method,
            base_model=document.base_model,
            slices=slices,
            sliced=module.slices is not None,
            shared=(
                Scope(f"{where}parameters", module.parameters or {}),
                Scope("parameters", document.parameters or {}),
            ),
            dtype=_dtype(file, "dtype", document.dtype),
            out_dtype=_dtype(file, "out_dtype", document.out_dtype),
            tokenizer_source=tokenizer,
            raw=raw,
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is named, the base first, each once."""
        bases = [self.base_model, *(part.base_model for part in self.slices)]
        sources = [source.model for part in self.slices for source in part.sources]
        return tuple(dict.fromkeys(model for model in [*bases, *sources] if model is not None))

    def scopes(self, part: Slice, source: Source | None = None) -> tuple[Scope, ...]:
        """Return the scopes of a slice and of one of its sources, the first having precedence."""
        return (*([source.scope] if source else []), part.scope, *self.shared)

    def error(self, where: str, value: object, problem: str, fix: str) -> ConfigError:
        """Return the error for a key of this file."""
        return ConfigError.of(f"{self.file}: {where}", value, problem, fix)


def resolve(recipe: Recipe, scopes: Iterable[Scope], name: str, kind: str, *, tensor: str, position: float) -> Any:
    """Return a parameter's value for a tensor at `position` (0 first layer, 1 last), or None where no scope has one.

    Raises `ConfigError` naming the key whose value is not of `kind` (`float`, `int` or `bool`).
    """
    for scope in scopes:
        rule = next(
            (rule for rule in scope.settings.get(name, ()) if rule.filter is None or rule.filter in tensor), None
        )
        if rule is None:
            continue
        try:
            return _KINDS[kind].validate_python(_at(rule.value, position, kind))
        except ValidationError as error:
            value = list(rule.value) if isinstance(rule.value, tuple) else rule.value
            problem = error.errors()[0]["msg"].lower()
            raise recipe.error(f"{scope.where}.{name}", value, problem, f"give a value of type {kind}") from error
    return None


def _at(value: Scalar | tuple[Scalar, ...], position: float, kind: str) -> Scalar:
    """Return a gradient's value at a position: numbers are interpolated linearly, booleans are picked."""
    if not isinstance(value, tuple):
        return value
    last = len(value) - 1
    if kind == "bool":
        return value[int(position * last)]
    numbers = [_KINDS["float"].validate_python(point) for point in value]
    low = int(position * last)
    share = position * last - low
    return float((1 - share) * numbers[low] + share * numbers[min(last, low + 1)])


def _parse_setting(value: Any) -> Setting:
    """Return the rules of a parameter: a scalar, a list of scalars, or rules `{filter: ..., value: ...}`."""
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, dict) for item in items):
        return tuple(_parse_rule(item) for item in items)
    return (Rule(_parse_value(value)),)


def _parse_rule(item: dict[str, Any]) -> Rule:
    if unknown := sorted(set(item) - {"filter", "value"}):
        raise ValueError(f"unknown key {unknown[0]!r}; a rule has `filter` and `value`")
    if "value" not in item:
        raise ValueError("a rule needs a `value`")
    pattern = item.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise ValueError(f"filter {pattern!r} is not text; write a part of the tensors' names, or *")
    return Rule(_parse_value(item["value"]), None if pattern == "*" else pattern)


def _parse_value(value: Any) -> Scalar | tuple[Scalar, ...]:
    points = value if isinstance(value, list) else [value]
    if not points or not all(isinstance(point, bool | int | float | str) for point in points):
        raise ValueError("neither a value, nor a list of values, nor rules with `filter` and `value`")
    return tuple(points) if isinstance(value, list) else points[0]


_Parameters = dict[str, Annotated[Any, PlainValidator(_parse_setting)]]


class _Model(Settings):
    model: str
    parameters: _Parameters | None = None


class _Source(_Model):
    layer_range: tuple[int, int]


class _Slice(Settings):
    sources: tuple[_Source, ...] = Field(min_length=1)
    base_model: str | None = None
    parameters: _Parameters | None = None


class _Module(Settings):
    slices: tuple[_Slice, ...] | None = Field(default=None, min_length=1)
    models: tuple[_Model, ...] | None = Field(default=None, min_length=1)
    parameters: _Parameters | None = None


class _Tokenizer(Settings):
    source: str = "union"


class _Document(_Module):
    modules: dict[str, _Module] | None = Field(default=None, min_length=1)
    merge_method: str
    base_model: str | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: _Tokenizer | None = None


_OWNERS: dict[str, type[Settings]] = {
    "models": _Model,
    "slices": _Slice,
    "sources": _Source,
    "tokenizer": _Tokenizer,
}


def _one_module(file: str, document: _Document) -> tuple[str, _Module]:
    """Return where the slices or models are listed, and the module that lists them."""
    if document.tokenizer and document.tokenizer_source:
        raise ConfigError(f"{file}: both tokenizer and tokenizer_source are given; keep one")
    given = [key for key in ("models", "slices", "modules") if getattr(document, key) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{file}: {' and '.join(given) or 'no models'} given; name exactly one of models, slices, modules"
        )
    if document.modules is None:
        return "", document.model_copy(update={"parameters": None})
    if len(document.modules) > 1:
        names = list(document.modules)
        raise ConfigError.of(f"{file}: modules", names, "models of several modules are not supported", "keep one")
    name, module = next(iter(document.modules.items()))
    if (module.models is None) == (module.slices is None):
        raise ConfigError(f"{file}: modules.{name}: name exactly one of models and slices")
    return f"modules.{name}.", module


def _normal_slices(where: str, document: _Document, module: _Module) -> tuple[Slice, ...]:
    if module.slices is not None:
        return tuple(_slice(f"{where}slices[{n}]", part) for n, part in enumerate(module.slices))
    sources = [
        Source(item.model, None, Scope(f"{where}models[{n}].parameters", item.parameters or {}))
        for n, item in enumerate(module.models or ())
    ]
    if document.base_model is not None and document.base_model not in [source.model for source in sources]:
        sources.append(Source(document.base_model, None, Scope("base_model", {})))
    return (Slice(tuple(sources), None, Scope("", {})),)


def _slice(where: str, part: _Slice) -> Slice:
    sources = [
        Source(item.model, item.layer_range, Scope(f"{where}.sources[{n}].parameters", item.parameters or {}))
        for n, item in enumerate(part.sources)
    ]
    return Slice(tuple(sources), part.base_model, Scope(f"{where}.parameters", part.parameters or {}))


def _dtype(file: str, key: str, name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if (found := DTYPES.get(name.removeprefix("torch."))) is None:
        raise ConfigError.of(f"{file}: {key}", name, "not a dtype to merge in", f"choose one of {', '.join(DTYPES)}")
    return found


def _explain(file: str, item: Any) -> str:
    location: Sequence[int | str] = item["loc"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
    if item["type"] != "extra_forbidden":
        return f"{file}: {where or 'content'} = {item['input']!r}: {item['msg']}"
    key, names = str(location[-1]), [part for part in location[:-1] if isinstance(part, str)]
    if key in _REFUSED:
        return str(ConfigError.of(f"{file}: {where}", item["input"], "not supported", _REFUSED[key]))
    owner = _OWNERS.get(names[-1], _Module) if names else _Document
    close = get_close_matches(key, list(owner.model_fields), n=1)
    fix = f"did you mean {close[0]}?" if close else f"known are {', '.join(owner.model_fields)}"
    return str(ConfigError.of(f"{file}: {where}", item["input"], "unknown key", fix))
