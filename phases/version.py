"""Which code made a file: the package's version and a digest of the algorithms' sources."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def code_version() -> str:
    """Return e.g. `0.1.0+4f1c09ab77e2`: equal versions run the same code in `phases/`."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    try:
        version = metadata.version("agent-forge")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"{version}+{digest.hexdigest()[:12]}"
