"""Audit of Python code by its syntax trees: T9, and what T4 to T7, T10 and T12 look like where they are written."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

from phases.baking.validation.code import claims, control, metrics
from phases.baking.validation.code.syntax import Module
from phases.baking.validation.finding import Finding, Report

_LEFT_OUT = frozenset({".venv", "venv", ".git", "__pycache__", "node_modules", "build", "dist"})


def audit_code(path: Path) -> Report:
    """Audit a Python file, or all of them in a folder."""
    files = [path] if path.is_file() else sorted(_files(path))
    findings, checked = list[Finding](), {"files": 0, "functions": 0}
    for file in files:
        module = _parse(file, path)
        if isinstance(module, Finding):
            findings.append(module)
            continue
        checked["files"] += 1
        checked["functions"] += len(module.functions)
        findings.extend(audit_module(module))
    return Report(path=str(path), kind="code", checked=checked, findings=tuple(dict.fromkeys(findings)))


def audit_module(module: Module) -> Iterator[Finding]:
    """Apply every rule to a parsed file. Files of tests may hold doubles, so only their assertions are judged."""
    yield from control.check(module)
    if not module.is_test:
        yield from metrics.check(module)
        yield from claims.check(module)


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*.py"):
        if not _LEFT_OUT & set(file.relative_to(folder).parts):
            yield file


def _parse(file: Path, root: Path) -> Module | Finding:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the code that is audited, not of ours
        try:
            tree = ast.parse(file.read_bytes(), filename=str(file))
        except (SyntaxError, ValueError) as error:
            return Finding(test="T1", path=str(file), where="0", why=f"no Python that can be parsed: {error}")
    return Module(file.relative_to(root.parent) if root.is_dir() else file, tree)
