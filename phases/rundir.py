"""The layout of a run directory, in one place.

- `config.yaml`: the fully resolved configuration
- `journal/`: one small JSON object per event
- `00_corpus/`: tokenizer and token files
- `00_start/model/`: the model that the first phase starts from, where that is not Cognate
- `<nn>_<phase>/result.json`: what the phase hands on; its hash is in the journal
- `<nn>_<phase>/model/`: the model that the next phase takes
- `report.html`
"""

from phases import modeldir, storage
from phases.contract import ModelRef, PhaseResult
from phases.errors import ArtifactError

CORPUS = "00_corpus"
START = "00_start/model"
FOLDERS = {
    "cognate": "01_cognate",
    "evomerge": "02_evomerge",
    "quietstar": "03_quietstar",
    "bitnet": "04_bitnet",
    "baking": "06_baking",
}
PHASES = tuple(FOLDERS)


def phase_folder(phase: str) -> str:
    """Return the folder of a phase relative to the run directory, e.g. `01_cognate`."""
    return FOLDERS[phase]


def result_path(phase: str) -> str:
    """Return the path of a phase's result relative to the run directory."""
    return f"{phase_folder(phase)}/result.json"


def finished_phases(run: str) -> list[str]:
    """Return the phases of a run that have a result, in order."""
    return [phase for phase in PHASES if storage.exists(storage.join(run, result_path(phase)))]


def read_result(run: str, phase: str) -> PhaseResult:
    """Return a phase's result. Raises `ArtifactError` naming a file that is missing or not a result."""
    path = storage.join(run, result_path(phase))
    try:
        return PhaseResult.model_validate_json(storage.read_bytes(path))
    except ValueError as error:
        raise ArtifactError(f"{path}: not a phase result ({error})") from error


def handed_on(run: str, phase: str) -> ModelRef:
    """Return the model that a phase takes: of the last finished phase before it, or the one that the run starts from.

    Raises `ArtifactError` where there is none.
    """
    before = PHASES[: PHASES.index(phase)]
    models = [read_result(run, name).model for name in finished_phases(run) if name in before]
    if not models and modeldir.is_model(storage.join(run, START)):
        return modeldir.open_ref(storage.join(run, START)).model_copy(update={"uri": START})
    if not models or models[-1] is None:
        raise ArtifactError(f"{run}: no phase before {phase} has handed on a model")
    return models[-1]


def write_result(run: str, result: PhaseResult) -> str:
    """Write a phase's result and return the SHA-256 of the file, which belongs into the journal."""
    path = storage.join(run, result_path(result.phase))
    storage.write_bytes(path, (result.model_dump_json(indent=2) + "\n").encode())
    return storage.sha256(path)
