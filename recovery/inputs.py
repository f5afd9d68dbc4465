"""What a step works on, as one hash: the same in every process, and another as soon as any part is another.

Dicts are ordered by key; objects stand for their type's name and their fields, arrays and tensors for their bytes.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from datetime import date, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
from pydantic import BaseModel

from phases.errors import ConfigError


def input_hash(arguments: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a step's arguments.

    Raises `ConfigError` where an argument is of a type that this cannot be said of.
    """
    try:
        canonical = json.dumps(arguments, sort_keys=True, default=_plain)
    except TypeError as error:
        fix = "use plain values, dates, paths, enums, arrays, dataclasses or pydantic models"
        raise ConfigError.of("task arguments", sorted(arguments), f"cannot be hashed ({error})", fix) from error
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return what stands for a value in JSON, with the name of its type where that matters."""
    if isinstance(value, BaseModel):
        return {"type": type(value).__name__} | dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    # Where nobody has imported it there are no tensors, and importing it would take each new process over a second.
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return [str(value.dtype), list(value.shape), hashlib.sha256(flat.numpy().tobytes()).hexdigest()]
    if isinstance(value, np.generic | np.ndarray):
        array = np.ascontiguousarray(value)
        return [array.dtype.str, list(np.shape(value)), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")
