"""Python sources as the rules see them: functions with their module, class, parameters and calls.

Nothing is imported or run. A nested function is a function of its own; its lines also count for the one around it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from phases.errors import ArtifactError

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_MUTABLE_CALLS = {"list", "dict", "set", "defaultdict", "deque", "Counter", "OrderedDict", "bytearray"}
_MUTABLE_NODES = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


@dataclass(frozen=True)
class Module:
    """A parsed file."""

    path: str
    tree: ast.Module
    lines: tuple[str, ...]
    functions: tuple["Function", ...] = field(default=(), compare=False)

    @cached_property
    def imported(self) -> set[str]:
        """Names that imports bind anywhere in the file."""
        nodes = [n for n in ast.walk(self.tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        return {(alias.asname or alias.name).split(".")[0] for node in nodes for alias in node.names}

    @cached_property
    def mutable_globals(self) -> set[str]:
        """Names that the module binds to lists, dictionaries, sets and the like."""
        found = set[str]()
        for node in self.tree.body:
            match node:
                case ast.Assign(targets=targets, value=value) if _is_mutable(value):
                    found |= {target.id for target in targets if isinstance(target, ast.Name)}
                case ast.AnnAssign(target=ast.Name(id=name), value=value) if _is_mutable(value):
                    found.add(name)
        return found


@dataclass(frozen=True)
class Function:
    """A function or method."""

    name: str  # with its class and outer functions, by dots
    node: FunctionNode
    owner: str  # the class whose method it is; empty for none

    @property
    def line(self) -> int:
        """The line of its `def`."""
        return self.node.lineno

    @property
    def length(self) -> int:
        """Lines from `def` to the last."""
        return (self.node.end_lineno or self.node.lineno) - self.node.lineno + 1

    @property
    def parameters(self) -> list[ast.arg]:
        """All parameters, `self` included."""
        a = self.node.args
        return [
            *a.posonlyargs,
            *a.args,
            *([a.vararg] if a.vararg else []),
            *a.kwonlyargs,
            *([a.kwarg] if a.kwarg else []),
        ]

    @cached_property
    def own_nodes(self) -> tuple[ast.AST, ...]:
        """All nodes of the body but those of nested functions and classes."""
        return tuple(_own(self.node))


def read_modules(path: Path) -> list[Module]:
    """Return the parsed files at or below `path`. Raises `ArtifactError` where there are none or one cannot be read."""
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    if not files:
        raise ArtifactError(f"{path}: there is no Python file here; name a file or a folder of sources")
    return [_read(file) for file in files]


def chain(node: ast.AST) -> list[str]:
    """Return the names of `a.b.c`, outermost object first; empty where it does not begin with a name."""
    names = list[str]()
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def _read(file: Path) -> Module:
    try:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(file))
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise ArtifactError(f"{file}: cannot be read as Python ({error})") from error
    return Module(str(file), tree, tuple(text.splitlines()), tuple(_functions(tree)))


def _functions(tree: ast.Module) -> Iterator[Function]:
    waiting: list[tuple[ast.AST, str, str]] = [(tree, "", "")]
    while waiting:
        node, prefix, owner = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FunctionNode):
                yield Function(prefix + child.name, child, owner)
                waiting.append((child, f"{prefix}{child.name}.", ""))
            elif isinstance(child, ast.ClassDef):
                waiting.append((child, f"{prefix}{child.name}.", child.name))
            else:
                waiting.append((child, prefix, owner))


def _own(function: FunctionNode) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = list(reversed(function.body))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, FunctionNode | ast.ClassDef):
            waiting += reversed(list(ast.iter_child_nodes(node)))


def _is_mutable(value: ast.AST | None) -> bool:
    if isinstance(value, _MUTABLE_NODES):
        return True
    names = chain(value.func) if isinstance(value, ast.Call) else []
    return bool(names) and names[-1] in _MUTABLE_CALLS
