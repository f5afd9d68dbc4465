"""T9 and T10 in code: what cannot fail. Assertions that are always true, failures returned as successes, work that is
only waited for, and recoveries that call nothing."""

import ast
from collections.abc import Iterator

from phases.baking.validation import words
from phases.baking.validation.code.syntax import (
    Function,
    Module,
    Scope,
    assignments,
    call_name,
    dotted,
    is_sleep,
    is_trivial,
    target_name,
)
from phases.baking.validation.finding import Finding

_CHECKS = words.vocabulary(
    "verify validate check test measure evaluate benchmark assess recover retry restart rollback fallback restore "
    "optimize optimise quantize quantise compress bake train export deploy convert merge run execute"
)
_WORK = words.vocabulary(
    "optimize optimise train quantize quantise compress bake prune distill merge infer inference predict evaluate "
    "benchmark measure profile calibrate finetune compile export convert fuse"
)
_RECOVERY = words.vocabulary("retry recover restart fallback rollback restore heal failover")
_ASKS = words.vocabulary("is should can has supports needs may get list count")
_GOOD_KEYS = words.vocabulary("success succeeded ok passed valid recovered healthy verified")
_GOOD_TEXT = words.vocabulary("success ok passed pass recovered verified valid healthy")


def check(module: Module) -> Iterator[Finding]:
    """Apply all rules of this file to a module."""
    yield from _assertions(module)
    for function in module.functions:
        scope = Scope(function)
        if function.name.startswith("test"):
            yield from _literal_assertions(module, scope)
        if not module.is_test:
            yield from _swallowed(module, scope)
            yield from _suppressed(module, scope)
            yield from _waiting(module, scope)
            yield from _empty_recovery(module, scope)


def is_success(node: ast.expr | None) -> bool:
    """Say whether an expression is a literal that says all went well."""
    match node:
        case ast.Constant(value=True):
            return True
        case ast.Constant(value=str(text)):
            return text.lower() in _GOOD_TEXT
        case ast.Tuple(elts=[first, *_]):
            return is_success(first)
        case ast.Dict(keys=keys, values=values):
            entries = zip(keys, values, strict=True)
            return any(_is_good_entry(key, value) for key, value in entries)
        case ast.Call(keywords=keywords):
            return any(word.arg in _GOOD_KEYS and is_success(word.value) for word in keywords)
    return False


def _is_good_entry(key: ast.expr | None, value: ast.expr) -> bool:
    name = key.value if isinstance(key, ast.Constant) else None
    if name in {"status", "outcome", "result"}:
        return isinstance(value, ast.Constant) and is_success(value)
    return name in _GOOD_KEYS and isinstance(value, ast.Constant) and value.value is True


def _assertions(module: Module) -> Iterator[Finding]:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Assert):
            continue
        match node.test:
            case ast.Constant(value=value) if value:
                yield module.finding("T9", node, "an assertion that is always true")
            case ast.Tuple(elts=[_, *_]):
                yield module.finding("T9", node, "asserts a tuple, which is always true")
            case ast.Compare(left=left, comparators=[right]) if _both_constant(left, right):
                yield module.finding("T9", node, "compares two literals")
            case ast.Compare(left=ast.Call(), ops=[ast.GtE()], comparators=[ast.Constant(value=0)]) if _is_length(
                node.test
            ):
                yield module.finding("T9", node, "a length is never negative")
            case ast.Compare(left=left, ops=[ast.Eq() | ast.LtE() | ast.GtE() | ast.Is()], comparators=[right]):
                if _is_same_value(left, right):
                    yield module.finding("T9", node, "compares something with itself")
            case ast.BoolOp(op=ast.Or(), values=values) if any(_is_true(value) for value in values):
                yield module.finding("T9", node, "an assertion that is always true")


def _is_length(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Call) and dotted(test.left.func) == "len"


def _is_same_value(left: ast.expr, right: ast.expr) -> bool:
    """Say whether two expressions are one and read, not called: calling twice may test that both give the same."""
    calls = any(isinstance(node, ast.Call | ast.Subscript) for node in ast.walk(left))
    return not calls and not isinstance(left, ast.Constant) and ast.dump(left) == ast.dump(right)


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and bool(node.value)


def _both_constant(left: ast.expr, right: ast.expr) -> bool:
    return isinstance(left, ast.Constant) and isinstance(right, ast.Constant)


def _literal_assertions(module: Module, scope: Scope) -> Iterator[Finding]:
    """Find tests whose every assertion is about numbers that the test itself wrote down."""
    asserted = [node for node in scope.nodes if isinstance(node, ast.Assert)]
    verdicts = []
    for node in asserted:
        match node.test:
            case ast.Compare(left=left, comparators=[right]):
                numbers = scope.literal(left), scope.literal(right)
                verdicts.append(None not in numbers and isinstance(left, ast.Name))
            case _:
                verdicts.append(False)
    if verdicts and all(verdicts):
        yield module.finding("T9", asserted[0], f"{scope.function.name} only compares literals with each other")


def _swallowed(module: Module, scope: Scope) -> Iterator[Finding]:
    checks = bool(_CHECKS & set(words.parts(scope.function.name)))
    for node in scope.nodes:
        for handler in node.handlers if isinstance(node, ast.Try) else ():
            if not _is_broad(handler) or any(isinstance(inner, ast.Raise) for inner in ast.walk(handler)):
                continue
            inside = [inner for statement in handler.body for inner in ast.walk(statement)]
            returned = [inner for inner in inside if isinstance(inner, ast.Return)]
            if any(is_success(inner.value) and (checks or isinstance(inner.value, ast.Dict)) for inner in returned):
                yield module.finding("T9", handler, "a failure of any kind is returned as success")
            elif checks and any(_invents(target, value) for target, value in assignments(inside)):
                yield module.finding("T9", handler, "a failure of any kind is noted as success")
            elif checks and not returned and _goes_on_to_success(scope.function, node) and _only_says(handler):
                yield module.finding("T9", handler, "a failure of any kind is passed over on the way to success")


def _suppressed(module: Module, scope: Scope) -> Iterator[Finding]:
    """Find checks that succeed whatever was raised: `finally: return True`, and `suppress(Exception)` before it."""
    if not _CHECKS & set(words.parts(scope.function.name)):
        return
    for node in scope.nodes:
        if isinstance(node, ast.Try) and any(
            isinstance(last, ast.Return) and is_success(last.value) for last in node.finalbody
        ):
            yield module.finding("T9", node, "returns success in `finally`, whatever was raised")
        if isinstance(node, ast.With | ast.AsyncWith) and _goes_on_to_success(scope.function, node):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            broad = {"Exception", "BaseException"}
            if any(call_name(c) == "suppress" and broad & {dotted(a) for a in c.args} for c in calls):
                yield module.finding("T9", node, "a failure of any kind is suppressed on the way to success")


def _is_broad(handler: ast.ExceptHandler) -> bool:
    match handler.type:
        case None | ast.Name(id="Exception" | "BaseException"):
            return True
    return False


def _invents(target: ast.expr, value: ast.expr) -> bool:
    name = target_name(target)
    number = value.value if isinstance(value, ast.Constant) else None
    if set(words.parts(name)) & _GOOD_KEYS:
        return number is True
    return words.is_metric(name) and isinstance(number, float) and number not in (0.0, -1.0)


def _only_says(handler: ast.ExceptHandler) -> bool:
    calls = [inner for inner in ast.walk(handler) if isinstance(inner, ast.Call)]
    changes = any(isinstance(inner, ast.Assign | ast.AugAssign) for inner in ast.walk(handler))
    return not changes and all(is_trivial(call) for call in calls)


def _goes_on_to_success(function: Function, attempt: ast.AST) -> bool:
    """Say whether a function ends with a literal success right after `attempt`, which is in its own body."""
    last = function.body[-1]
    follows = len(function.body) >= 2 and function.body[-2] is attempt
    return follows and isinstance(last, ast.Return) and is_success(last.value)


def _waiting(module: Module, scope: Scope) -> Iterator[Finding]:
    sleeps = [node for node in scope.nodes if is_sleep(node)]
    if not sleeps or not _WORK & set(words.parts(scope.function.name)):
        return
    works = [call for call in scope.calls if not is_trivial(call) and not _is_notice(call)]
    products = any(isinstance(node, ast.MatMult | ast.Yield | ast.YieldFrom) for node in scope.nodes)
    if not works and not products:
        yield module.finding("T9", sleeps[0], f"{scope.function.name} waits in place of working")


def _is_notice(call: ast.Call) -> bool:
    """Say whether a call only tells someone, or only builds a result: of names and literals, or of blanks."""
    parts = set(words.parts(call_name(call)))
    if call_name(call) in {"zeros", "ones", "empty", "full", "zeros_like", "ones_like"}:
        return True  # an answer of the right shape
    plain = all(isinstance(argument, ast.Name | ast.Constant) for argument in call.args)
    return bool({"progress", "notify", "callback", "emit", "status"} & parts) or (
        call_name(call)[:1].isupper() and plain
    )


def _empty_recovery(module: Module, scope: Scope) -> Iterator[Finding]:
    found = words.parts(scope.function.name)
    if not _RECOVERY & set(found) or found[0] in _ASKS or scope.function.decorator_list:
        return
    stored = [target for target, _ in assignments(scope.nodes) if isinstance(target, ast.Attribute | ast.Subscript)]
    changes = any(not _counts_success(target) for target in stored)
    acts = any(isinstance(node, ast.Await | ast.Raise | ast.Yield | ast.Delete) for node in scope.nodes)
    works = any(not is_trivial(call) for call in scope.calls) or acts or changes
    if scope.returns and all(is_success(value) for value in scope.returns) and not (works and not _only_sleeps(scope)):
        yield module.finding("T10", scope.function, f"{scope.function.name} reports success and calls nothing again")


def _counts_success(target: ast.expr) -> bool:
    return bool(_GOOD_KEYS & set(words.parts(target_name(target))))


def _only_sleeps(scope: Scope) -> bool:
    awaited = [node.value for node in scope.nodes if isinstance(node, ast.Await)]
    others = [call for call in scope.calls if not is_trivial(call)]
    return bool(awaited) and all(is_sleep(value) for value in awaited) and not others
