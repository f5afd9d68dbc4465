"""Measurements by name, and claims built from them.

A claim is made by running its probe, so that what a phase states and what `forge verify` finds later come from one
function. A probe sees the files of the run and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from inspect import signature
from typing import Any, Literal

from phases import storage
from phases.contract import Baseline, Claim, Probe
from phases.errors import ArtifactError

MODULES = (
    "phases.cognate.probes",
    "phases.evomerge.probes",
    "phases.quietstar.probes",
    "phases.bitnet.probes",
    "phases.baking.probes",
)


@dataclass(frozen=True)
class Measurement:
    """A measured `value` and the raw `samples` that it summarises."""

    value: float
    samples: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, as probes see them. Paths in claims are relative to the run directory."""

    uri: str

    def path(self, relative: str) -> str:
        return relative if "://" in relative or relative.startswith("/") else storage.join(self.uri, relative)

    @cached_property
    def cache(self) -> dict[Any, Any]:
        """What probes of one sitting share, e.g. loaded models."""
        return {}


ProbeFunction = Callable[..., Measurement]
_PROBES: dict[str, ProbeFunction] = {}


def probe(name: str) -> Callable[[ProbeFunction], ProbeFunction]:
    """Register a measurement `f(files: RunFiles, **arguments) -> Measurement` under `name`."""

    def register(function: ProbeFunction) -> ProbeFunction:
        _PROBES[name] = function
        return function

    return register


def measure(files: RunFiles, probe: Probe) -> Measurement:
    """Run a probe. Raises `ArtifactError` naming one that does not exist or does not take its arguments."""
    for module in MODULES:
        import_module(module)
    if probe.name not in _PROBES:
        raise ArtifactError(f"probe {probe.name}: not known to this version; known are {', '.join(sorted(_PROBES))}")
    function = _PROBES[probe.name]
    try:
        bound = signature(function).bind(files, **probe.arguments)
    except TypeError as error:
        raise ArtifactError(f"probe {probe.name}: wrong arguments {probe.arguments} ({error})") from error
    return function(*bound.args, **bound.kwargs)


def claim(
    files: RunFiles,
    key: str,
    probe: Probe,
    *,
    unit: str,
    better: Literal["higher", "lower"],
    tolerance: float,
    baseline: Baseline | None = None,
    target: float | None = None,
    samples_to: str | None = None,
) -> Claim:
    """Measure `probe` and return the claim; raw samples go to the artifact `samples_to` where one is named."""
    measurement = measure(files, probe)
    if samples_to is not None:
        storage.write_json(files.path(samples_to), measurement.samples)
    return Claim(
        key=key,
        value=measurement.value,
        unit=unit,
        better=better,
        tolerance=tolerance,
        baseline=baseline,
        target=target,
        probe=probe,
        samples=samples_to,
    )
