"""`code_execution`: a short Python program in a process of its own that can compute and print, and nothing else.

Three layers; the second and third are tested with the first left out:
1. `screen` reads the program: imports beyond a list and names that begin with an underscore are refused before it runs.
2. An audit hook in the child (`sandbox_child`), which a program cannot remove, refuses files, sockets, processes,
   ctypes and further imports, however a program came by them.
3. The kernel: CPU, memory, file size and process limits, wall time, an empty folder, an empty environment, another user
   where we are root, and a network namespace without interfaces where we may make one.
What is left to a program that gets past the first: it can see whether a path exists, and a file's size (`os.stat`).
"""

import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pydantic import Field

from phases.settings import Settings

ALLOWED = frozenset(
    {
        "bisect", "cmath", "collections", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
        "heapq", "itertools", "json", "math", "numbers", "operator", "random", "re", "statistics", "string",
        "textwrap", "typing",
    }
)  # fmt: skip
_CHILD = Path(__file__).with_name("sandbox_child.py")
_NOBODY = 65534
_MAX_CODE = 100_000


class Limits(Settings):
    """What a program may use."""

    cpu_seconds: int = Field(default=5, ge=1)
    wall_seconds: float = Field(default=10.0, gt=0)
    memory_mb: int = Field(default=256, ge=64)
    output_bytes: int = Field(default=64_000, ge=100)


@dataclass(frozen=True)
class Execution:
    """What came of a program. `error` is for the model to read."""

    outcome: Literal["ok", "refused", "error", "timeout", "killed"]
    output: str
    error: str = ""


def run_code(code: str, limits: Limits | None = None) -> Execution:
    """Run a program after reading it."""
    if (problem := screen(code)) is not None:
        return Execution("refused", "", problem)
    return execute(code, limits or Limits())


def screen(code: str) -> str | None:
    """Return why a program must not run, None where nothing speaks against it."""
    if len(code) > _MAX_CODE:
        return f"longer than {_MAX_CODE} characters"
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) if bad := [n.name for n in names if n.name.split(".")[0] not in ALLOWED]:
                return f"import of {bad[0]} is not allowed; allowed are {', '.join(sorted(ALLOWED))}"
            case ast.ImportFrom(module=module, level=level) if level or (module or "").split(".")[0] not in ALLOWED:
                return f"import of {module} is not allowed; allowed are {', '.join(sorted(ALLOWED))}"
            case ast.Attribute(attr=name) | ast.Name(id=name) if name.startswith("_") and name not in {"_", "__name__"}:
                return f"the name {name} is not allowed"
            case ast.Name(
                id="open" | "exec" | "eval" | "compile" | "breakpoint" | "input" | "globals" | "vars" as name
            ):
                return f"{name} is not allowed"
    return None


def execute(code: str, limits: Limits) -> Execution:
    """Run a program in the sandbox without reading it first."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder, ExitStack() as files:
        output, errors = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        cwd = Path(folder) / "empty"
        cwd.mkdir()
        if os.geteuid() == 0:
            os.chmod(folder, 0o711)
            os.chown(cwd, _NOBODY, _NOBODY)
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            cwd=cwd,
            env={},
            start_new_session=True,
        )
        order = {"code": code, "allowed": sorted(ALLOWED), "imports": _imports(code), **limits.model_dump()}
        try:
            child.communicate(json.dumps(order).encode(), timeout=limits.wall_seconds)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _kill(child)
        text, problem = (_text(file, limits.output_bytes) for file in (output, errors))
    return _outcome(child.returncode, late, text, problem, limits)


def _text(file: IO[bytes], limit: int) -> str:
    file.seek(0)
    return file.read(limit).decode(errors="replace")


def _imports(code: str) -> list[str]:
    """Return the allowed modules that a program imports, which the child loads before files are closed to it."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return sorted(name for name in named if name.split(".")[0] in ALLOWED)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it may have started, and wait for it."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def _outcome(code: int, late: bool, text: str, stderr: str, limits: Limits) -> Execution:
    if late:
        return Execution("timeout", text, f"stopped after {limits.wall_seconds:g} s")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Execution("timeout", text, f"stopped after {limits.cpu_seconds} CPU seconds")
    if code < 0:
        return Execution("killed", text, f"ended by {signal.Signals(-code).name}")
    last = stderr.strip().splitlines()[-1] if stderr.strip() else ""
    return Execution("ok" if code == 0 else "error", text, last[:1000])
