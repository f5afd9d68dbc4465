"""The ten rules, each a function from a function to the places where it breaks the rule.

Rules 1, 2, 4, 5, 6, 7 and 10 keep the sense that they have for C. Rules 3, 8 and 9 (heap, preprocessor, pointers) have
no counterpart in Python and are adapted to what plays the same part: fresh arrays in open-ended loops, code that
changes other code, and reaching through many objects. Nothing here proves a program safe.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from phases.compliance.calls import CallGraph
from phases.compliance.checks import MIN_CHECKS, MIN_LINES, effective_checks
from phases.compliance.loops import allocates, is_unbounded
from phases.compliance.source import Function, Module, chain

MAX_LINES, MAX_DEPTH = 60, 3
_CODE = {"eval", "exec", "compile", "__import__"}
_BY_NAME = {"setattr", "delattr"}
_MUTATORS = {
    "append",
    "extend",
    "insert",
    "add",
    "update",
    "pop",
    "popitem",
    "clear",
    "remove",
    "discard",
    "setdefault",
}
_SILENCED = ("# noqa", "# type: ignore", "# pylint: disable", "# pyright: ignore")


@dataclass(frozen=True)
class Place:
    """A breach: where and what."""

    line: int
    what: str


@dataclass(frozen=True)
class Context:
    """What a rule may look at beside the function itself."""

    module: Module
    calls: CallGraph


Rule = Callable[[Function, Context], Iterator[Place]]


def simple_flow(function: Function, context: Context) -> Iterator[Place]:
    """Allow no recursion, direct or through others of the module, and no code made from text."""
    if cycle := context.calls.cycle_of(function):
        yield Place(function.line, f"recursion: {' -> '.join(cycle)}")
    for call in _calls(function):
        name = _called(call)
        if name in _CODE:
            yield Place(call.lineno, f"{name}() runs code that cannot be read here")
        elif name in _BY_NAME and len(call.args) > 1 and not isinstance(call.args[1], ast.Constant):
            yield Place(call.lineno, f"{name}() with a computed name")


def bounded_loops(function: Function, context: Context) -> Iterator[Place]:
    """Let every loop have a bound that can be seen: a counter compared, a container used up, no endless iterator."""
    for node in function.own_nodes:
        if isinstance(node, ast.While | ast.For | ast.AsyncFor) and is_unbounded(node):
            yield Place(node.lineno, "a loop whose end cannot be seen")


def no_fresh_arrays(function: Function, context: Context) -> Iterator[Place]:
    """Adapted: allow no new arrays or tensors in `while` loops, where nothing says how many there will be."""
    for node in function.own_nodes:
        if isinstance(node, ast.While):
            yield from (Place(line, f"{name} allocates in an open-ended loop") for line, name in allocates(node))


def short_functions(function: Function, context: Context) -> Iterator[Place]:
    """Let a function fit on a page: at most 60 lines."""
    if function.length > MAX_LINES:
        yield Place(function.line, f"{function.length} lines")


def checks(function: Function, context: Context) -> Iterator[Place]:
    """Ask for two checks in each function of more than 10 lines, of something that can be false."""
    if function.length > MIN_LINES and (found := effective_checks(function)) < MIN_CHECKS:
        yield Place(function.line, f"{found} effective checks in {function.length} lines")


def small_scope(function: Function, context: Context) -> Iterator[Place]:
    """Allow no `global`, and no change of what a module holds."""
    local = {node.id for node in function.own_nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    shared = context.module.mutable_globals - local - {p.arg for p in function.parameters}
    for node in function.own_nodes:
        if isinstance(node, ast.Global):
            yield Place(node.lineno, f"global {', '.join(node.names)}")
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and _is_one_of(node.value, shared):
            yield Place(node.lineno, "changes an object of the module")
    for call in _calls(function):
        if isinstance(call.func, ast.Attribute) and call.func.attr in _MUTATORS and _is_one_of(call.func.value, shared):
            yield Place(call.lineno, "changes an object of the module")


def used_results(function: Function, context: Context) -> Iterator[Place]:
    """Let no result of the module's own functions be dropped."""
    for node in function.own_nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = context.calls.resolve(node.value, function)
            if called is not None and returns_something(called):
                yield Place(node.lineno, f"the result of {called.name} is dropped")


def no_patches(function: Function, context: Context) -> Iterator[Place]:
    """Adapted: allow no assignment into what was imported, and no imports by computed name."""
    for node in function.own_nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            names = chain(node)
            if len(names) == 2 and names[0] in context.module.imported:
                yield Place(node.lineno, f"changes {'.'.join(names)}, which was imported")
    for call in _calls(function):
        if _called(call) == "import_module" and not all(isinstance(a, ast.Constant) for a in call.args):
            yield Place(call.lineno, "imports by a computed name")


def shallow_reach(function: Function, context: Context) -> Iterator[Place]:
    """Adapted: let no expression reach through more than three attributes."""
    inner = {id(node.value) for node in function.own_nodes if isinstance(node, ast.Attribute)}
    for node in function.own_nodes:
        if isinstance(node, ast.Attribute) and id(node) not in inner and len(names := chain(node)) > MAX_DEPTH + 1:
            yield Place(node.lineno, f"{'.'.join(names)} reaches {len(names) - 1} attributes deep")


def no_warnings(function: Function, context: Context) -> Iterator[Place]:
    """Ask that every parameter and result is typed, so that a strict checker sees all, and that none is silenced."""
    named = [p for p in function.parameters if p.arg not in ("self", "cls")]
    if missing := [p.arg for p in named if p.annotation is None]:
        yield Place(function.line, f"untyped: {', '.join(missing)}")
    elif function.node.returns is None:
        yield Place(function.line, "untyped result")
    for number in range(function.line, function.line + function.length):
        if any(mark in context.module.lines[number - 1] for mark in _SILENCED):
            yield Place(number, "a silenced warning")


def returns_something(function: Function) -> bool:
    """Say whether a function gives back anything but None; generators and coroutines do."""
    returns = function.node.returns
    if isinstance(returns, ast.Constant) and returns.value is None:
        return False
    if returns is not None and chain(returns)[-1:] in (["NoReturn"], ["Never"]):
        return False
    values = [n.value for n in function.own_nodes if isinstance(n, ast.Return) and n.value is not None]
    return any(not (isinstance(value, ast.Constant) and value.value is None) for value in values)


RULES: dict[str, Rule] = {
    "1 simple control flow": simple_flow,
    "2 bounded loops": bounded_loops,
    "3 no allocation in open loops (adapted)": no_fresh_arrays,
    "4 at most 60 lines": short_functions,
    "5 two checks": checks,
    "6 smallest scope": small_scope,
    "7 results are used": used_results,
    "8 no code that changes code (adapted)": no_patches,
    "9 shallow reach (adapted)": shallow_reach,
    "10 typed, nothing silenced": no_warnings,
}


def _calls(function: Function) -> Iterator[ast.Call]:
    return (node for node in function.own_nodes if isinstance(node, ast.Call))


def _called(call: ast.Call) -> str:
    """Return `f` of `f(...)` and of `importlib.import_module(...)`; methods of other objects have other names."""
    names = chain(call.func)
    return names[-1] if len(names) == 1 or names[:1] in (["importlib"], ["builtins"]) else ""


def _is_one_of(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names
