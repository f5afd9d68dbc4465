"""Who calls whom within a module, as far as names tell: functions, nested ones, methods through `self` and `cls`."""

import ast
from dataclasses import dataclass
from functools import cached_property

from phases.compliance.source import Function, Module, chain


@dataclass(frozen=True)
class CallGraph:
    """Calls among the functions of one module."""

    module: Module

    def resolve(self, call: ast.Call, caller: Function) -> Function | None:
        """Return the function of this module that a call means, None where it is another's or cannot be told."""
        names = chain(call.func)
        if len(names) == 1:
            scopes = caller.name.split(".")
            prefixes = [".".join([*scopes[:depth], names[0]]) for depth in range(len(scopes), -1, -1)]
            # A method is not in the scope of its siblings.
            found = [self._by_name[p] for p in prefixes if p in self._by_name]
            return next((f for f in found if not f.owner), None)
        if len(names) == 2 and names[0] in ("self", "cls") and "." in caller.name:
            return self._by_name.get(f"{self._class_of(caller)}.{names[1]}")
        return None

    def cycle_of(self, function: Function) -> list[str]:
        """Return the shortest chain of calls from a function back to itself; empty where there is none."""
        paths = {name: [function.name, name] for name in self._edges[function.name]}
        border = list(paths)
        for _ in range(len(self._edges)):
            if function.name in paths:
                return paths[function.name]
            reached = {n: [*paths[name], n] for name in border for n in self._edges.get(name, ()) if n not in paths}
            paths |= reached
            border = list(reached)
        return paths.get(function.name, [])

    @cached_property
    def _by_name(self) -> dict[str, Function]:
        return {function.name: function for function in self.module.functions}

    @cached_property
    def _edges(self) -> dict[str, set[str]]:
        edges = dict[str, set[str]]()
        for function in self.module.functions:
            calls = [node for node in function.own_nodes if isinstance(node, ast.Call)]
            targets = [self.resolve(call, function) for call in calls]
            edges[function.name] = {target.name for target in targets if target is not None}
        return edges

    def _class_of(self, function: Function) -> str:
        """Return the dotted name of the class around a method, or around the method that a function is nested in."""
        scopes = function.name.split(".")
        for depth in range(len(scopes), 0, -1):
            outer = self._by_name.get(".".join(scopes[:depth]))
            if outer is not None and outer.owner:
                return ".".join(scopes[: depth - 1])
        return ""
