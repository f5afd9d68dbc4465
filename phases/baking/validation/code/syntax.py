"""Reading Python: the few questions about a syntax tree that all rules share. Nothing is imported or executed."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phases.baking.validation import words
from phases.baking.validation.finding import Finding, TestName

Function = ast.FunctionDef | ast.AsyncFunctionDef
CLOCKS = frozenset(
    {"perf_counter", "perf_counter_ns", "monotonic", "process_time", "thread_time", "time_ns", "default_timer"}
)
_TRIVIAL = words.vocabulary(
    "print log info debug warning error exception len round range str repr format append extend items values keys dict "
    "list tuple set float int bool abs min max sum now isoformat sleep time update get join sorted enumerate zip "
    "strftime today utcnow"
)
_DRAWS = words.vocabulary(
    "random uniform gauss normal normalvariate randn rand betavariate triangular standard_normal randint randrange "
    "integers lognormal lognormvariate beta random_sample ranf"
)
_DRAWERS = words.vocabulary("random rng np numpy torch generator gen rand secrets systemrandom")


@dataclass(frozen=True)
class Module:
    """A parsed file."""

    path: Path
    tree: ast.Module

    @cached_property
    def is_test(self) -> bool:
        """Whether the file holds tests, whose doubles may pretend."""
        names = {part.lower() for part in self.path.parts}
        stem = self.path.stem
        return bool({"tests", "test", "testing"} & names) or stem.startswith("test_") or stem in {"conftest", "_test"}

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def finding(self, test: TestName, node: ast.AST, why: str, measured: float | str | None = None) -> Finding:
        line = getattr(node, "lineno", 0)
        return Finding(test=test, path=str(self.path), where=str(line), measured=measured, why=why)


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of a function in source order, without those of functions and classes inside it."""
    stack: list[ast.AST] = list(reversed(function.body))
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            stack.extend(reversed(list(ast.iter_child_nodes(node))))


def call_name(call: ast.Call) -> str:
    """Return the last part of the name of what is called, "" where it has none."""
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for a chain of names, "" for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            return f"{inner}.{attribute}" if (inner := dotted(value)) else ""
        case ast.Call(func=function):
            return dotted(function)
    return ""


def target_name(node: ast.expr) -> str:
    """Return what an assignment's target is called: a name, an attribute, or the string that it is indexed with."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key
    return ""


def assignments(nodes: Iterator[ast.AST] | list[ast.AST]) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield (target, value) of plain and annotated assignments."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield target, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield node.target, node.value


@dataclass(frozen=True)
class Scope:
    """A function and what its local names are assigned."""

    function: Function

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(own_nodes(self.function))

    @cached_property
    def parameters(self) -> set[str]:
        a = self.function.args
        rest = [argument for argument in (a.vararg, a.kwarg) if argument is not None]
        names = {argument.arg for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, *rest)}
        return names - {"self", "cls"}

    @cached_property
    def values(self) -> dict[str, list[ast.expr]]:
        """The expressions that each local name is assigned; a name bound in another way is left out."""
        found = dict[str, list[ast.expr]]()
        for target, value in assignments(self.nodes):
            if isinstance(target, ast.Name):
                found.setdefault(target.id, []).append(value)
        plain = {id(target) for target, _ in assignments(self.nodes)}
        for node in self.nodes:
            bound = isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
            if bound and id(node) not in plain and isinstance(node, ast.Name):
                found.pop(node.id, None)  # a loop's variable, `with ... as`, `+=`, unpacking
        inner = [node for node in ast.walk(self.function) if isinstance(node, ast.Nonlocal | ast.Global)]
        for name in self.parameters.union(*(node.names for node in inner)):
            found.pop(name, None)
        return found

    @cached_property
    def returns(self) -> list[ast.expr]:
        return [node.value for node in self.nodes if isinstance(node, ast.Return) and node.value is not None]

    @cached_property
    def calls(self) -> list[ast.Call]:
        return [node for node in self.nodes if isinstance(node, ast.Call)]

    def literal(self, node: ast.expr, depth: int = 3) -> float | None:
        """Return the number that an expression always is, through local names; None where it is computed."""
        match node:
            case ast.Constant(value=bool()):
                return None
            case ast.Constant(value=int() | float() as value):
                return float(value)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return None if (found := self.literal(inner, depth)) is None else -found
            case ast.Name(id=name) if depth and name in self.values:
                found_all = [self.literal(value, depth - 1) for value in self.values[name]]
                return found_all[0] if len(set(found_all)) == 1 else None
            case ast.Call(args=[inner]) if call_name(node) in {"round", "float"}:
                return self.literal(inner, depth)
            case ast.Subscript(value=table) | ast.Call(func=ast.Attribute(value=table, attr="get")) if depth:
                return self._looked_up(table, depth)
            case ast.BinOp(left=left, op=operation, right=right):
                first, second = self.literal(left, depth), self.literal(right, depth)
                return None if first is None or second is None else _arithmetic(operation, first, second)
        return None

    def _looked_up(self, table: ast.expr, depth: int) -> float | None:
        """Return a number of a display that holds only literals: whichever is taken from it, it is written down."""
        if isinstance(table, ast.Name):
            values = self.values.get(table.id, [])
            table = values[0] if len(values) == 1 else table
        entries: list[ast.expr] = []
        if isinstance(table, ast.Dict):
            entries = table.values
        elif isinstance(table, ast.List | ast.Tuple):
            entries = table.elts
        numbers = [self.literal(entry, depth - 1) for entry in entries]
        return numbers[0] if numbers and None not in numbers else None

    def is_draw(self, node: ast.expr, depth: int = 3) -> bool:
        """Say whether a number is drawn at random, looking through arithmetic and local names but into no call."""
        match node:
            case ast.Call():
                if is_draw_call(node):
                    return True
                through = call_name(node) in {"round", "float", "abs", "min", "max", "clip", "int", "item"}
                inner = [*node.args, *([node.func.value] if isinstance(node.func, ast.Attribute) else [])]
                return through and any(self.is_draw(argument, depth) for argument in inner)
            case ast.BinOp(left=left, right=right):
                return self.is_draw(left, depth) or self.is_draw(right, depth)
            case ast.UnaryOp(operand=inner_node):
                return self.is_draw(inner_node, depth)
            case ast.IfExp(body=body, orelse=orelse):
                return self.is_draw(body, depth) or self.is_draw(orelse, depth)
            case ast.Name(id=name) if depth:
                return any(self.is_draw(value, depth - 1) for value in self.values.get(name, ()))
        return False


def _arithmetic(operation: ast.operator, first: float, second: float) -> float | None:
    """Return the result of one of the four operations, None for another or where it has none."""
    match operation:
        case ast.Add():
            return first + second
        case ast.Sub():
            return first - second
        case ast.Mult():
            return first * second
        case ast.Div() if second:
            return first / second
    return None


def is_draw_call(call: ast.Call) -> bool:
    """Say whether a call draws numbers from nothing. `rng.choice(measured)` draws from data, which is resampling."""
    name, chain = call_name(call), dotted(call.func).lower()
    if name == "choice" and call.args and isinstance(call.args[0], ast.List | ast.Tuple):
        return all(isinstance(item, ast.Constant) for item in call.args[0].elts)
    if name not in _DRAWS:
        return False
    owners = {part for link in chain.split(".")[:-1] for part in words.parts(link)}
    return bool(owners & _DRAWERS) or (not owners and name in {"uniform", "gauss", "randint", "randrange"})


def is_clock(node: ast.AST) -> bool:
    """Say whether a node reads a clock."""
    if not isinstance(node, ast.Call):
        return False
    return call_name(node) in CLOCKS or dotted(node.func) in {"time.time", "time"}


def is_trivial(call: ast.Call) -> bool:
    """Say whether a call does none of the work that a function is named after: printing, clocks, containers, draws."""
    chain = dotted(call.func).lower()
    return call_name(call).lower() in _TRIVIAL or is_clock(call) or is_draw_call(call) or "logg" in chain


def is_sleep(node: ast.AST) -> bool:
    """Say whether a node waits for time to pass."""
    return isinstance(node, ast.Call) and dotted(node.func) in {"time.sleep", "sleep", "asyncio.sleep", "anyio.sleep"}
