"""T4, T5, T6, T7, T9 and T12 in code: how comparisons, timings and calibrations are rigged where they are made."""

import ast
from collections.abc import Iterator

from phases.baking.validation import words
from phases.baking.validation.code.metrics import measures
from phases.baking.validation.code.syntax import (
    Module,
    Scope,
    assignments,
    call_name,
    dotted,
    is_clock,
    is_sleep,
    is_trivial,
    target_name,
)
from phases.baking.validation.finding import Finding

_SUMMARIES = words.vocabulary("min max mean fmean median average percentile quantile")
_AFTER = words.vocabulary("quantized quantised compressed optimized optimised int8 int4 pruned baked")
_QUANTITY = words.vocabulary("size bytes mb latency time ms memory seconds")
_HARDWARE = words.vocabulary("cuda gpu tensorrt npu tpu neon amx vnni coreml rocm mps openvino avx512 jetson")
_INFERS = words.vocabulary("infer forward predict generate")
_WATCHED = frozenset({"PYTEST_CURRENT_TEST", "BENCHMARK", "BENCHMARKING", "BENCHMARK_MODE", "IS_BENCHMARK"})


def check(module: Module) -> Iterator[Finding]:
    """Apply all rules of this file to a module that holds no tests."""
    if module.is_test:
        return
    for function in module.functions:
        scope = Scope(function)
        yield from _rigged_ratio(module, scope)
        yield from _derived(module, scope)
        yield from _leak(module, scope)
        yield from _remembered(module, scope)
        yield from _watched(module, scope)
        yield from _claimed_hardware(module, scope)
        for body in _blocks(scope):
            yield from _empty_timing(module, function.name, body)


def _blocks(scope: Scope) -> Iterator[list[ast.stmt]]:
    yield scope.function.body
    for node in scope.nodes:
        for field in ("body", "orelse", "finalbody"):
            if isinstance(block := getattr(node, field, None), list) and block:
                yield block


def _rigged_ratio(module: Module, scope: Scope) -> Iterator[Finding]:
    pairs = [(target_name(target), value) for target, value in assignments(scope.nodes)]
    pairs += [(scope.function.name, value) for value in scope.returns]
    for name, value in pairs:
        found = set(words.parts(name))
        quotient = isinstance(value, ast.BinOp) and isinstance(value.op, ast.Div)
        if not {"speedup", "improvement", "ratio"} & found or not quotient:
            continue
        assert isinstance(value, ast.BinOp), "checked above"
        kinds = [_summary(scope, side) for side in (value.left, value.right)]
        if None not in kinds and kinds[0] != kinds[1]:
            why = f"{name} divides the {kinds[0]} of one by the {kinds[1]} of the other"
            yield module.finding("T4", value, why)
        number = scope.literal(value.left)
        if "speedup" in found and number is not None and number not in (0.0, 1.0):
            yield module.finding("T4", value, f"{name} is relative to a number that was not measured", number)


def _summary(scope: Scope, node: ast.expr) -> str | None:
    """Return which summary of samples an expression is, through one local name."""
    if isinstance(node, ast.Name) and len(values := scope.values.get(node.id, [])) == 1:
        node = values[0]
    if not isinstance(node, ast.Call):
        return None
    name = call_name(node)
    return {"fmean": "mean", "average": "mean"}.get(name, name) if name in _SUMMARIES else None


def _derived(module: Module, scope: Scope) -> Iterator[Finding]:
    """Find results of an optimisation that are computed from what was there before and a literal factor."""
    for target, value in assignments(scope.nodes):
        parts = set(words.parts(target_name(target)))
        if not (_AFTER & parts and _QUANTITY & parts) or not isinstance(value, ast.BinOp):
            continue
        source = set(words.parts(target_name(value.left)))
        factor = scope.literal(value.right)
        same = bool(_QUANTITY & source & parts) and not _AFTER & source
        if same and isinstance(value.op, ast.Div | ast.Mult | ast.FloorDiv) and factor is not None and factor != 1:
            why = f"{target_name(target)} is {target_name(value.left)} times a literal, not measured"
            yield module.finding("T9", value, why, factor)


def _leak(module: Module, scope: Scope) -> Iterator[Finding]:
    calibrated, evaluated = dict[str, ast.Call](), dict[str, ast.Call]()
    for call in scope.calls:
        name = set(words.parts(call_name(call)))
        named = {word.arg: dotted(word.value) for word in call.keywords if word.arg is not None}
        given = [dotted(argument) for argument in call.args[1:]] + list(named.values())
        if {"calibrate", "calibration"} & name:
            calibrated |= dict.fromkeys(filter(None, given), call)
        elif data := next((value for key, value in named.items() if "calibration" in words.parts(key)), ""):
            calibrated[data] = call
        if {"evaluate", "eval"} & name or words.is_fraction(call_name(call)):
            evaluated |= dict.fromkeys(filter(None, given), call)
    for name_ in calibrated.keys() & evaluated.keys():
        if {
            "data",
            "loader",
            "set",
            "dataset",
            "examples",
            "split",
            "batches",
            "texts",
            "samples",
            "test",
            "dev",
        } & set(words.parts(name_)):
            yield module.finding("T6", evaluated[name_], f"{name_} is calibrated on and evaluated on")


def _remembered(module: Module, scope: Scope) -> Iterator[Finding]:
    names = {dotted(node).rpartition(".")[2] for node in scope.function.decorator_list}
    if names & {"lru_cache", "cache"} and _infers(scope.function.name):
        yield module.finding("T5", scope.function, f"{scope.function.name} remembers its outputs by input")


def _infers(name: str) -> bool:
    """Say whether a function's name means running a model (and not inferring, say, a type)."""
    found = words.parts(name)
    model = {"model", "batch", "one", "text", "tokens", "next", "request", "output", "outputs", "logits"}
    return "inference" in found or (found[:1] != () and found[0] in _INFERS and (len(found) == 1 or found[1] in model))


def _watched(module: Module, scope: Scope) -> Iterator[Finding]:
    if not (measures(scope.function) or _infers(scope.function.name)):
        return
    for node in scope.nodes:
        if not isinstance(node, ast.If):
            continue
        texts = {inner.value for inner in ast.walk(node.test) if isinstance(inner, ast.Constant)}
        modules = any(
            dotted(inner) == "sys.modules" for inner in ast.walk(node.test) if isinstance(inner, ast.Attribute)
        )
        if not (_WATCHED & texts or (modules and "pytest" in texts)):
            continue
        inside = [inner for statement in node.body for inner in ast.walk(statement)]
        if any(isinstance(inner, ast.Return) and inner.value is not None for inner in inside):
            yield module.finding("T7", node, f"{scope.function.name} does something else while it is watched")


def _claimed_hardware(module: Module, scope: Scope) -> Iterator[Finding]:
    found = words.parts(scope.function.name)
    asks = found and (found[0] in {"supports", "has", "detect", "is", "check", "probe"} or "available" in found)
    if not asks or not _HARDWARE & set(found) or not scope.returns:
        return
    says_yes = all(_is_yes(scope, value) for value in scope.returns)
    if says_yes and all(is_trivial(call) for call in scope.calls):
        yield module.finding("T12", scope.function, f"{scope.function.name} says yes without looking")


def _is_yes(scope: Scope, value: ast.expr) -> bool:
    given = scope.values.get(value.id, []) if isinstance(value, ast.Name) else [value]
    return bool(given) and all(isinstance(one, ast.Constant) and one.value is True for one in given)


def _empty_timing(module: Module, function: str, body: list[ast.stmt]) -> Iterator[Finding]:
    """Find `start = clock()` ... `clock() - start` with nothing, or only waiting, in between."""
    if {"overhead", "resolution", "sleep", "wait", "delay", "clock"} & set(words.parts(function)):
        return
    for first, statement in enumerate(body):
        if not (isinstance(statement, ast.Assign) and is_clock(statement.value)):
            continue
        start = target_name(statement.targets[0])
        last = next((number for number in range(first + 1, len(body)) if _reads(body[number], start)), None)
        if last is None or hasattr(body[last], "body"):
            continue  # a loop or `try` that reads the start keeps a deadline, or holds the work itself
        timed = body[first + 1 : last]
        if timed and isinstance(timed[-1], ast.Assign) and is_clock(timed[-1].value):
            timed = timed[:-1]  # `end = clock()`
        between = [node for inner in timed for node in ast.walk(inner)]
        if not _works(between) and _stops_clock(body[first + 1 : last + 1], start):
            yield module.finding("T5", statement, f"{function} times nothing but waiting")


def _reads(statement: ast.stmt, name: str) -> bool:
    return any(
        isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load) and target_name(node) == name
        for node in ast.walk(statement)
    )


def _stops_clock(statements: list[ast.stmt], start: str) -> bool:
    """Say whether the time since `start` is taken here, by a clock read in these statements."""
    nodes = [node for statement in statements for node in ast.walk(statement)]
    differences = [node for node in nodes if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)]
    taken = any(_is_named(node.right, start) for node in differences)
    return taken and any(is_clock(node) for node in nodes)


def _is_named(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name | ast.Attribute) and target_name(node) == name


def _works(nodes: list[ast.AST]) -> bool:
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    waits = any(is_sleep(call) for call in calls)
    busy = any(not is_trivial(call) for call in calls)
    control = (ast.Yield, ast.YieldFrom, ast.With, ast.AsyncWith, ast.AsyncFor, ast.Import, ast.ImportFrom)
    other = any(isinstance(node, (ast.BinOp, ast.AugAssign, *control)) for node in nodes)
    awaits = any(isinstance(node, ast.Await) and not is_sleep(node.value) for node in nodes)
    return busy or awaits or (other and not waits)
