"""Loops: whether their end can be seen in the source, and whether they allocate."""

import ast
from collections.abc import Iterator

from phases.compliance.source import chain

Loop = ast.While | ast.For | ast.AsyncFor
_ENDLESS = {"count", "cycle", "repeat"}
_SHRINKS = {"pop", "popleft", "popitem", "remove", "clear", "discard"}
_ARRAYS = {"torch", "np", "numpy"}
_MAKERS = {
    *("zeros", "ones", "empty", "full", "tensor", "rand", "randn", "arange", "linspace", "array"),
    *("cat", "stack", "concatenate", "hstack", "vstack", "zeros_like", "ones_like", "empty_like", "full_like"),
}


def is_unbounded(loop: Loop) -> bool:
    """Say whether nothing in the source ends a loop.

    A `while` is bounded where its condition reads something that its body counts up or down, assigns or uses up. A
    `for` is, unless it runs over `itertools.count`, `cycle`, `repeat` without a number, or `iter` with a sentinel.
    """
    if isinstance(loop, ast.While):
        return not (_read(loop.test) & _changed(loop.body))
    if not isinstance(loop.iter, ast.Call):
        return False
    name = "".join(chain(loop.iter.func)[-1:])
    arguments = len(loop.iter.args) + len(loop.iter.keywords)
    return (name in _ENDLESS and not (name == "repeat" and arguments > 1)) or (name == "iter" and arguments > 1)


def allocates(loop: ast.While) -> Iterator[tuple[int, str]]:
    """Yield line and name of each call in a loop that makes a new array or tensor."""
    for node in (inner for statement in loop.body for inner in ast.walk(statement)):
        names = chain(node.func) if isinstance(node, ast.Call) else []
        if len(names) > 1 and names[0] in _ARRAYS and names[-1] in _MAKERS and isinstance(node, ast.Call):
            yield node.lineno, ".".join(names)


def _read(test: ast.expr) -> set[str]:
    """Return the names and attributes that a condition reads, as dotted text."""
    nodes = [node for node in ast.walk(test) if isinstance(node, ast.Name | ast.Attribute)]
    return {".".join(names) for node in nodes if (names := chain(node))}


def _changed(body: list[ast.stmt]) -> set[str]:
    """Return what the statements assign, count or use up, as dotted text."""
    found = set[str]()
    for node in (inner for statement in body for inner in ast.walk(statement)):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(".".join(chain(node)))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Del):
            found.add(".".join(chain(node.value)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SHRINKS:
            found.add(".".join(chain(node.func.value)))
    return found - {""}
