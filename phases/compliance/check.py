"""Checking a folder: findings by file and line, a table by rule, and a score.

The score is the share of (function, rule) pairs without a finding. It says how a code base stands by these rules beside
others; it certifies nothing.
"""

from pathlib import Path

from phases.compliance.calls import CallGraph
from phases.compliance.rules import RULES, Context
from phases.compliance.source import Module, read_modules
from phases.settings import Settings


class Finding(Settings):
    """A breach of a rule."""

    file: str
    line: int
    function: str
    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: rule {self.rule}: {self.function}: {self.what}"


class Report(Settings):
    """What was found in `functions` functions of `files` files."""

    files: int
    functions: int
    findings: tuple[Finding, ...]

    @property
    def score(self) -> float:
        """The share of (function, rule) pairs that hold; 1 where there is no function."""
        pairs = self.functions * len(RULES)
        return 1 - len(self._broken()) / pairs if pairs else 1.0

    @property
    def table(self) -> dict[str, float]:
        """Return rule -> share of functions that keep it."""
        broken = [rule for _, _, rule in self._broken()]
        return {rule: 1 - broken.count(rule) / max(self.functions, 1) for rule in RULES}

    def _broken(self) -> set[tuple[str, str, str]]:
        return {(finding.file, finding.function, finding.rule) for finding in self.findings}


def check(path: Path | str) -> Report:
    """Check a file or a folder. Raises `ArtifactError` where there is no Python in it, or some that does not parse."""
    modules = read_modules(Path(path))
    findings = tuple(finding for module in modules for finding in _check_module(module))
    return Report(files=len(modules), functions=sum(len(m.functions) for m in modules), findings=findings)


def _check_module(module: Module) -> list[Finding]:
    context, found = Context(module, CallGraph(module)), list[Finding]()
    for function in module.functions:
        name = f"{function.name}:{function.line}"
        for rule, broken_by in RULES.items():
            places = broken_by(function, context)
            found += [Finding(file=module.path, line=p.line, function=name, rule=rule, what=p.what) for p in places]
    return found
