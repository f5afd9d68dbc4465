"""T7 and T9 in code: numbers named after measurements that are written down, drawn at random, or adjusted.

Looked at are assignments, dictionary entries, logged values and results of functions whose name says that they measure.
0 and 1 are left alone: they are what honest code returns for an empty set and for a ratio to itself.
"""

import ast
from collections.abc import Iterator

from phases.baking.validation import words
from phases.baking.validation.code.syntax import Module, Scope, assignments, call_name, target_name
from phases.baking.validation.finding import Finding

_VERBS = words.vocabulary(
    "measure compute calculate calc evaluate eval benchmark bench profile validate assess score test verify"
)
_ALONE = words.vocabulary("evaluate benchmark measure profile assess")
_LOGS = words.vocabulary("log log_metric log_metrics report dump dumps write_json save_results log_dict record_metric")
_HONEST = (0.0, 1.0, -1.0)


def measures(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Say whether a function's name promises a measurement."""
    found = words.parts(function.name)
    if not found:
        return False
    verb = found[0] in _VERBS and (found[0] in _ALONE or words.is_metric(function.name) or len(found) == 1)
    arguments = [argument for argument in function.args.args if argument.arg not in {"self", "cls"}]
    return verb or (words.is_metric(function.name) and bool(arguments))


def check(module: Module) -> Iterator[Finding]:
    """Apply all rules of this file to a module."""
    for function in module.functions:
        scope = Scope(function)
        yield from _random(module, scope)
        yield from _logged(module, scope)
        yield from _adjusted(module, scope)
        if measures(function):
            yield from _written_results(module, scope)
            yield from _written_values(module, scope)


def _random(module: Module, scope: Scope) -> Iterator[Finding]:
    pairs = [(target, target_name(target), value) for target, value in assignments(scope.nodes)]
    pairs += [(value, key, value) for key, value in _entries(scope.nodes)]
    pairs += [
        (word.value, word.arg, word.value) for call in scope.calls for word in call.keywords if word.arg is not None
    ]
    if measures(scope.function):
        pairs += [(value, "accuracy", value) for value in scope.returns]  # whatever it returns is a measurement
    for node, name, value in pairs:
        if words.is_metric(name) and scope.is_draw(value):
            yield module.finding("T7", node, f"{name} is drawn at random")


def _logged(module: Module, scope: Scope) -> Iterator[Finding]:
    for call in scope.calls:
        if call_name(call) not in _LOGS:
            continue
        entries = list(_entries(list(ast.walk(call))))
        if len(call.args) >= 2 and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str):
            entries.append((call.args[0].value, call.args[1]))
        for name, value in entries:
            if words.is_metric(name) and (number := scope.literal(value)) is not None and number not in _HONEST:
                yield module.finding("T9", value, f"{name} is logged as a literal", number)


def _written_results(module: Module, scope: Scope) -> Iterator[Finding]:
    numbers = [scope.literal(value) for value in scope.returns]
    if numbers and all(number is not None and number not in _HONEST for number in numbers):
        name = scope.function.name
        yield module.finding("T9", scope.function, f"{name} returns a literal, whatever it is given", numbers[0])
    for value in scope.returns:
        built = list(ast.walk(_resolved(scope, value)))
        words_given = [word for node in built if isinstance(node, ast.Call) for word in node.keywords]
        named = [(word.arg, word.value) for word in words_given if word.arg is not None]
        for key, entry in [*_entries(built), *named]:
            number = scope.literal(entry)
            if words.is_metric(key) and number is not None and number not in _HONEST:
                yield module.finding("T9", entry, f"the result's {key} is a literal", number)


def _resolved(scope: Scope, value: ast.expr) -> ast.expr:
    values = scope.values.get(value.id, []) if isinstance(value, ast.Name) else []
    return values[0] if len(values) == 1 else value


def _written_values(module: Module, scope: Scope) -> Iterator[Finding]:
    for target, value in assignments(scope.nodes):
        if isinstance(target, ast.Name):
            continue  # what becomes of a local name is seen where it is returned or logged
        name, number = target_name(target), scope.literal(value)
        if words.is_metric(name) and number is not None and number not in _HONEST:
            yield module.finding("T9", value, f"{name} is a literal in {scope.function.name}", number)


def _adjusted(module: Module, scope: Scope) -> Iterator[Finding]:
    for target, value in assignments(scope.nodes):
        name = target_name(target)
        if words.is_metric(name):
            yield from _floored(module, scope, name, value)
        if words.is_fraction(name) and _is_plus_literal(scope, value, name):
            yield module.finding("T7", value, f"{name} is raised by a literal")
        if words.is_metric(name) and _is_one(value):
            yield module.finding("T7", value, f"{name} divides a number by itself")
    for node in scope.nodes:
        if isinstance(node, ast.AugAssign) and words.is_fraction(target_name(node.target)):
            number = scope.literal(node.value)
            if isinstance(node.op, ast.Add) and number is not None and 0 < number < 1:
                yield module.finding("T7", node, f"{target_name(node.target)} is raised by a literal", number)
    if measures(scope.function):
        for value in scope.returns:
            yield from _floored(module, scope, scope.function.name, value)


def _is_one(value: ast.expr) -> bool:
    match value:
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return ast.dump(left) == ast.dump(right)
    return False


def _floored(module: Module, scope: Scope, name: str, value: ast.expr) -> Iterator[Finding]:
    good = words.is_fraction(name) or not words.is_metric(name)  # the name of a function may say only that it measures
    call = call_name(value) if isinstance(value, ast.Call) else ""
    if good and isinstance(value, ast.Call) and call in {"max", "clip", "clamp"} and len(value.args) >= 2:
        lowest = value.args if call == "max" else value.args[1:2]  # clip(x, lowest, highest)
        for number in map(scope.literal, lowest):
            if number is not None and number >= 0.5:
                yield module.finding("T7", value, f"{name} can never be below a literal", number)
    elif isinstance(value, ast.Call) and call_name(value) == "min" and words.parts(name)[-2:] == ("error", "rate"):
        for number in map(scope.literal, value.args):
            if number is not None and 0 < number < 0.5:
                yield module.finding("T7", value, f"{name} can never be above a literal", number)


def _is_plus_literal(scope: Scope, value: ast.expr, name: str) -> bool:
    match value:
        case ast.Call(args=[first, *_]) if call_name(value) in {"min", "round"}:
            return any(_is_plus_literal(scope, argument, name) for argument in value.args) if first else False
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            number = scope.literal(right)
            return words.is_fraction(target_name(left)) and number is not None and 0 < number < 1
    return False


def _entries(nodes: list[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Yield the entries of dictionary displays that have a string as key."""
    for node in nodes:
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, value
