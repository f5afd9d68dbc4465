"""T10: recoveries that recovered nothing: a success without a second call, more recoveries than faults, other bytes.

Works on the counts that a statement gives, on a log of recoveries (`error_recovery_log.json`: one entry each), and on
a strategy that can be called: it is given a task that fails once, and must call it again.
"""

from collections.abc import Callable, Iterator
from typing import Any

from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import Statement

RERUNS = frozenset({"retry", "restart", "fallback", "rollback"})
_COUNTS = ("attempts", "invocations", "reinvocations", "calls")
_SUCCESS = ("recovered", "success", "succeeded")


def check(statement: Statement) -> Iterator[Finding]:
    """Compare recoveries with faults, with second calls, and the recovered artifact with the undisturbed one."""
    recovered, source, key = statement.recovered, statement.source, statement.key
    if recovered is not None and statement.injected is not None and recovered > statement.injected:
        yield _finding(source, key, "more recoveries than faults", recovered, statement.injected)
    if recovered is not None and statement.reinvoked is not None and recovered > statement.reinvoked:
        yield _finding(source, key, "recovered without being called again", recovered, statement.reinvoked)
    first, second = statement.sha256.get("recovered"), statement.sha256.get("fault_free")
    if first is not None and second is not None and first != second:
        why = "the recovered artifact has other bytes than the undisturbed one"
        yield Finding(test="T10", path=source, where=key, claimed=second, measured=first, why=why)


def check_log(document: Any, source: str) -> Iterator[Finding]:
    """Check each entry of a list of recoveries: who says that a rerun succeeded must have run it again."""
    entries = document if isinstance(document, list) else _entries(document)
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or str(entry.get("strategy", "")).lower() not in RERUNS:
            continue
        succeeded = any(entry.get(name) is True for name in _SUCCESS) or entry.get("outcome") == "recovered"
        counts = [entry[name] for name in _COUNTS if isinstance(entry.get(name), int)]
        if succeeded and counts and max(counts) < 1:
            where = f"entry {number} ({entry.get('task', entry['strategy'])})"
            yield _finding(source, where, f"{entry['strategy']} succeeded without calling the task again", 1, 0)


def _entries(document: Any) -> list[Any]:
    if not isinstance(document, dict):
        return []
    lists = (document.get(key) for key in ("recoveries", "events", "log", "errors"))
    return next((entries for entries in lists if isinstance(entries, list)), [])


class _FailsOnce:
    """A task that fails the first time and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls == 1:
            raise TimeoutError("injected by the audit")
        return "done"


def check_strategy(name: str, recover: Callable[[Callable[[], Any]], Any]) -> list[Finding]:
    """Give `recover` a task that fails once; it must be called again, and its result must come back."""
    task = _FailsOnce()
    try:
        result = recover(task)
    except TimeoutError:
        return []  # it gave up and said so, which is no pretence
    if task.calls < 2:
        return [_finding(name, "recover", "reports success without calling the task again", 2, task.calls)]
    if result is None or result is False:
        return [_finding(name, "recover", "called the task again and lost its result", 1, 0)]
    return []


def _finding(path: str, where: str, why: str, claimed: int, measured: int) -> Finding:
    return Finding(test="T10", path=path, where=where, claimed=float(claimed), measured=float(measured), why=why)
