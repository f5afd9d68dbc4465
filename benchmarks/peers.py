"""Other tools to compare with, each in a virtual environment of its own, kept under bench-results."""

import json
import os
import subprocess
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness import RESULTS, progress
from phases.errors import ForgeError

_INSTALL_SECONDS = 1200


def environment_of(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of a tool's environment, making it where it is not there yet, or has other requirements.

    Raises `ForgeError` where they cannot be installed.
    """
    folder = RESULTS / f"{name}-venv"
    done, wanted = folder / "requirements.json", json.dumps(requirements)
    if not done.exists() or done.read_text() != wanted:
        progress(f"installing {name} into an environment of its own")
        venv.create(folder, with_pip=True, clear=True)
        run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements], _INSTALL_SECONDS)
        done.write_text(wanted)
    return folder / "bin" / "python"


def run(command: list[str], seconds: int, more: Mapping[str, str] | None = None) -> None:
    """Run a command, with `more` in its environment and no PYTHONPATH.

    Raises `ForgeError` with the last of what it said where it fails or takes too long.
    """
    environment = {**os.environ, **(more or {})}
    environment.pop("PYTHONPATH", None)
    try:
        subprocess.run(command, check=True, timeout=seconds, capture_output=True, text=True, env=environment)
    except subprocess.TimeoutExpired as error:
        raise ForgeError(f"took more than {seconds} s") from error
    except subprocess.CalledProcessError as error:
        raise ForgeError((error.stderr.strip().splitlines() or ["no word"])[-1][:300]) from error
