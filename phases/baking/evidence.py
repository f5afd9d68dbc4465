"""What an agent has done, as a file: what it measured, what it rejected and why, and the hashes of what it left.

No agent certifies itself. What it hands in here is judged by the QualityValidator from the files, and a phase in which
a step has left no evidence has failed.
"""

from typing import Any

from pydantic import Field, ValidationError

from phases import rundir, storage
from phases.errors import ArtifactError
from phases.settings import Settings

FOLDER = rundir.phase_folder("baking")
STEPS = (
    "Phase5Handoff",
    "AgentInitialization",
    "ModelBaking",
    "QualityValidation",
    "Optimization",
    "Phase7Preparation",
    "Completion",
)
AGENTS = (
    "BakingCoordinator",
    "ModelOptimizer",
    "InferenceAccelerator",
    "QualityValidator",
    "PerformanceProfiler",
    "HardwareAdapter",
    "GraphOptimizer",
    "MemoryOptimizer",
    "DeploymentPreparer",
)


class Evidence(Settings):
    """One piece of an agent's work."""

    agent: str
    step: str = Field(description=f"one of {', '.join(STEPS)}")
    work: str = Field(pattern=r"^[a-z_]+$")
    measured: dict[str, Any] = Field(default_factory=dict)
    rejected: dict[str, str] = Field(default_factory=dict, description="what was tried and did not hold -> why")
    files: dict[str, str] = Field(default_factory=dict, description="path in the run -> SHA-256")

    @property
    def path(self) -> str:
        """Where it is kept, relative to the run."""
        return f"{FOLDER}/evidence/{self.agent}-{self.work}.json"


def keep(run: str, evidence: Evidence) -> Evidence:
    """Write evidence and return it."""
    storage.write_json(storage.join(run, evidence.path), evidence.model_dump(mode="json"))
    return evidence


def kept(run: str) -> list[Evidence]:
    """Return all evidence of a run. Raises `ArtifactError` naming a file that is none."""
    folder = storage.join(run, FOLDER, "evidence")
    found = list[Evidence]()
    for name in storage.names(folder):
        path = storage.join(folder, name)
        try:
            found.append(Evidence.model_validate(storage.read_json(path)))
        except ValidationError as error:
            raise ArtifactError(f"{path}: no evidence of this version ({error})") from error
    return found


def require_complete(evidence: list[Evidence]) -> None:
    """Raise `ArtifactError` naming agents and steps that have left nothing; `Completion` is what asks."""
    agents = [name for name in AGENTS if name not in {each.agent for each in evidence} | {"BakingCoordinator"}]
    steps = [name for name in STEPS[:-1] if name not in {each.step for each in evidence}]
    if agents or steps:
        raise ArtifactError(f"no evidence from {', '.join([*agents, *steps])}; run the phase again")


def digests(run: str, *paths: str) -> dict[str, str]:
    """Return path -> SHA-256 of files of a run."""
    return {path: storage.sha256(storage.join(run, path)) for path in paths}
