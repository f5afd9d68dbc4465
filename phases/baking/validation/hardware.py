"""T12: results for hardware that nothing was executed on, by the report's own record of its machine."""

from collections.abc import Iterator
from typing import Any

from phases.baking.validation import words
from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import Statement

_GPU = words.vocabulary("cuda gpu tensorrt trt rocm nvidia h100 a100 h200")
_OTHER = words.vocabulary("npu tpu coreml ane jetson neon hexagon qnn amx vnni mps xpu openvino edgetpu")
_NOT_RUN = ("not run", "not_run", "untested", "recipe", "build only", "unverified")


def check(statement: Statement) -> Iterator[Finding]:
    """Find a result whose device is not among those that the report says it ran on."""
    device = statement.device or ""
    named = (_GPU | _OTHER) & {*words.parts(device), *words.parts(statement.key)}
    if named and not _ran_on(named, statement.executed_on, statement.host):
        what = ", ".join(statement.executed_on) or f"gpu: {statement.host.get('gpu')}" if statement.host else "nothing"
        why = f"a result on {', '.join(sorted(named))}; the report records execution on {what}"
        yield Finding(test="T12", path=statement.source, where=statement.key, claimed=device or None, why=why)


def check_document(document: Any, source: str) -> Iterator[Finding]:
    """Find platforms listed as supported without a record of execution. "not run" beside one makes it honest."""
    if not isinstance(document, dict):
        return
    executed = [str(name).lower() for name in document.get("executed_on", ())]
    host = document.get("host") or document.get("machine") or {}
    for key in ("supported_platforms", "supported_devices", "platforms", "supported_hardware"):
        listed = document.get(key, ())
        entries = listed.items() if isinstance(listed, dict) else [(name, True) for name in listed]
        for name, state in entries:
            named = (_GPU | _OTHER) & set(words.parts(str(name)))
            if not named or not state or _says_not_run(f"{name} {state}"):
                continue
            if isinstance(state, dict) and (state.get("supported") is False or state.get("executed")):
                continue
            if not _ran_on(named, executed, host if isinstance(host, dict) else {}):
                why = "listed as supported; nothing records that it ran there"
                yield Finding(test="T12", path=source, where=key, claimed=str(name), why=why)


def _ran_on(named: set[str] | frozenset[str], executed: Any, host: dict[str, Any]) -> bool:
    recorded = {part for name in executed for part in words.parts(str(name))}
    recorded |= {part for flag in host.get("isa", ()) for part in words.parts(str(flag))}
    gpu = bool(host.get("gpu"))
    return all(name in recorded or (gpu and name in _GPU) for name in named)


def _says_not_run(text: str) -> bool:
    return any(words_ in text.lower() for words_ in _NOT_RUN)
