"""Every ```bash block of the README and of docs/ is executed, file by file, in a copy of the project.

`make` is shown what it would do and not run: `make test` would start this test again, and CI runs both targets. Blocks
that need a cloud account are marked ```console and are not executed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    file for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if "```bash" in file.read_text()
]


def script(document: Path) -> str:
    blocks = re.findall(r"^```bash\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(blocks).replace("make ", "make --dry-run ")


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_commands_work(document: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "wandb", "bench-results", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, project, ignore=ignored)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(project),
    }
    environment.pop("RAY_ADDRESS", None)
    outcome = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script(document)],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert outcome.returncode == 0, f"{outcome.stdout[-2000:]}\n{outcome.stderr[-4000:]}"


def test_relative_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
