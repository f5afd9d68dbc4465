"""Checks that can fail: assertions and guarded raises whose condition depends on what the function was given.

`assert True`, `assert 1 < 2`, `assert x == x` and `assert x or True` check nothing and are not counted.
"""

import ast
from collections.abc import Iterator
from typing import TypeGuard

from phases.compliance.source import Function

MIN_CHECKS, MIN_LINES = 2, 10


def effective_checks(function: Function) -> int:
    """Count the conditions of a function that guard something it was given, directly or through a local name."""
    given = _given(function)
    return sum(bool(_names(condition) & given) and not _is_constant(condition) for condition in _conditions(function))


def _conditions(function: Function) -> Iterator[ast.expr]:
    for node in function.own_nodes:
        if isinstance(node, ast.Match):
            yield from (node.subject for case in node.cases if _raises(case.body))
        elif isinstance(node, ast.Assert) or (
            isinstance(node, ast.If) and (_raises(node.body) or _raises(node.orelse))
        ):
            yield node.test


def _guards(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and (_raises(node.body) or _raises(node.orelse))


def _raises(body: list[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], ast.Raise)


def _given(function: Function) -> set[str]:
    """Return the parameters and what is computed from them."""
    given = {parameter.arg for parameter in function.parameters}
    bindings = [(_names(target), _names(value)) for target, value in _bindings(function)]
    for _ in bindings:
        more = {name for targets, sources in bindings if sources & given for name in targets}
        if more <= given:
            break
        given |= more
    return given


def _bindings(function: Function) -> Iterator[tuple[ast.AST, ast.AST]]:
    for node in function.own_nodes:
        if isinstance(node, ast.Assign):
            yield from ((target, node.value) for target in node.targets)
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.AugAssign) and node.value is not None:
            yield node.target, node.value
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            yield node.target, node.iter
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            yield node.optional_vars, node.context_expr


def _is_constant(condition: ast.expr) -> bool:
    """Say whether a condition cannot be false, as far as its form tells."""
    match condition:
        case ast.Constant():
            return True
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(isinstance(value, ast.Constant) and value.value for value in values)
        case ast.Compare(left=left, comparators=[right]):
            return ast.dump(left) == ast.dump(right) or _is_length_at_least_zero(condition)
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, ast.Name(id="object")]):
            return True
    return False


def _is_length_at_least_zero(condition: ast.Compare) -> bool:
    left, operator, right = condition.left, condition.ops[0], condition.comparators[0]
    is_length = isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id == "len"
    return is_length and isinstance(operator, ast.GtE) and isinstance(right, ast.Constant) and right.value == 0


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
