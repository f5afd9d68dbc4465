"""Peak memory of running a file once, in a process that has done nothing else."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from phases.baking.optimise.session import Feeds, SessionSettings
from phases.errors import ForgeError

_ROOT = Path(__file__).resolve().parents[3]
# VmHWM is the process's own peak; what its parent had resident does not count.
_CHILD = """
import json, pathlib, sys
import numpy as np
from phases.baking.optimise.session import SessionSettings, open_session
def peak(): return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
bare, (path, given, feeds) = peak(), sys.argv[1:]
settings, feeds = SessionSettings.model_validate_json(given), np.load(feeds)
session = open_session(pathlib.Path(path), settings)
for _ in range(3): session.run(None, dict(feeds))
print(json.dumps({"above": peak() - bare}))
"""


def peak_bytes(path: Path, settings: SessionSettings, feeds: Feeds) -> int:
    """Return the peak resident memory beyond that of the bare runtime, in bytes.

    Raises `ForgeError` with the process's last words where it fails.
    """
    with TemporaryDirectory() as folder:
        given = Path(folder) / "feeds.npz"
        np.savez(given, **feeds)  # type: ignore[arg-type]  # the stubs know no ** of arrays
        command = [sys.executable, "-c", _CHILD, str(path.resolve()), settings.model_dump_json(), str(given)]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ForgeError(f"{path}: measuring its memory failed; {done.stderr.strip()[-400:]}")
    return int(json.loads(done.stdout)["above"])
