"""The toolbox: carries out a model's calls. Whatever a call does wrong becomes a result that the model can read."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from phases.baking.tools import sandbox, web
from phases.baking.tools.calls import Malformed, ToolCall
from phases.baking.tools.rag import Index
from phases.baking.tools.sandbox import Limits
from phases.baking.tools.spec import CODE_EXECUTION, RAG_QUERY, WEB_SEARCH, ToolSpec

Function = Callable[..., Any]


class ToolBox:
    """Tools by name: their specifications and the functions behind them."""

    def __init__(self, tools: Mapping[str, tuple[ToolSpec, Function]]) -> None:
        self._tools = dict(tools)

    @property
    def specs(self) -> dict[str, ToolSpec]:
        return {name: spec for name, (spec, _) in self._tools.items()}

    def run(self, call: ToolCall | Malformed) -> str:
        """Carry out a call; return its result, or its error, as one line of JSON."""
        if isinstance(call, Malformed):
            return json.dumps({"error": call.problem})
        if call.name not in self._tools:
            return json.dumps({"error": f"no tool {call.name}; there are {', '.join(self._tools)}"})
        spec, function = self._tools[call.name]
        if problems := spec.problems(call.arguments):
            return json.dumps({"error": "; ".join(problems)})
        try:
            return json.dumps({"result": function(**call.arguments)})
        except web.SearchError as error:
            return json.dumps({"error": str(error)})


def standard_tools(index: Index, search_url: str, limits: Limits | None = None) -> ToolBox:
    """Return rag_query over `index`, web_search at the URL template `search_url`, and code_execution.

    Raises `ConfigError` where the template is none.
    """
    web.check_template(search_url)
    return ToolBox(
        {
            RAG_QUERY.name: (RAG_QUERY, lambda query, k=5: [asdict(found) for found in index.search(query, k)]),
            CODE_EXECUTION.name: (CODE_EXECUTION, lambda code: asdict(sandbox.run_code(code, limits))),
            WEB_SEARCH.name: (
                WEB_SEARCH,
                lambda query, k=5: [asdict(page) for page in web.search(query, k, search_url)],
            ),
        }
    )
