"""The inside of the sandbox: closes every door, then runs the program that came on stdin. Never import this module.

It runs as a script in a fresh interpreter without site packages and uses the standard library only. Doors are closed
in this order: the network is left behind, modules are loaded, the user is left, limits are set, the audit hook goes in.
"""

import importlib
import json
import os
import resource
import sys
from typing import Any

_NEWUSER, _NEWNET, _NO_NEW_PRIVILEGES = 0x10000000, 0x40000000, 38  # linux/sched.h, linux/prctl.h
_INSIDE = "inside"
_NOBODY = 65534
_LAZY = ("_strptime", "encodings.idna", "unicodedata", "linecache", "traceback", "tokenize")  # imported when used
_REFUSED = (
    "socket.", "subprocess.", "os.", "ctypes.", "shutil.", "pty.", "fcntl.", "mmap.", "signal.", "resource.",
    "sqlite3.", "syslog.", "glob.", "tempfile.", "gc.", "ftplib.", "http.", "urllib.", "smtplib.", "imaplib.",
    "webbrowser.", "pathlib.", "sys.addaudithook", "sys.settrace", "sys.setprofile", "code.__new__",
    "object.__setattr__", "_thread.", "marshal.", "pickle.", "cpython.remote_debugger",
)  # fmt: skip


def _leave_network() -> None:
    """Enter a network namespace without interfaces, then start over, since ctypes could call anything."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.unshare(_NEWNET if os.geteuid() == 0 else _NEWUSER | _NEWNET)  # where refused, the hook still closes sockets
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", __file__, _INSIDE])


def _leave_user() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _limit(order: dict[str, Any]) -> None:
    memory, output = order["memory_mb"] << 20, order["output_bytes"]
    for kind, value in (
        (resource.RLIMIT_CPU, order["cpu_seconds"]),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _close_doors() -> None:
    refused, closed = _REFUSED, frozenset({"open", "import"})

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in closed or event.startswith(refused):
            raise PermissionError(f"{event} is not allowed in the sandbox")

    sys.addaudithook(hook)


def _builtins(allowed: list[str]) -> dict[str, Any]:
    """Return builtins without files, and with imports only of modules that are loaded and allowed."""
    import builtins

    left_out = {"open", "input", "breakpoint", "exec", "eval", "compile", "help", "exit", "quit", "memoryview"}
    kept = {name: value for name, value in vars(builtins).items() if name not in left_out}
    modules, names, plain = dict(sys.modules), frozenset({*allowed, "_strptime"}), getattr

    def import_module(
        name: str, globals: object = None, locals: object = None, fromlist: tuple[str, ...] = (), level: int = 0
    ) -> object:
        if level or name.split(".")[0] not in names or name not in modules:
            raise ImportError(f"import of {name} is not allowed")
        return modules[name] if fromlist else modules[name.split(".")[0]]

    def get_attribute(value: object, name: str, *default: object) -> object:
        if name.startswith("_"):
            raise AttributeError(f"the name {name} is not allowed")
        return plain(value, name, *default)

    return kept | {"__import__": import_module, "getattr": get_attribute}


def main() -> None:
    """Read the order from stdin and run its program."""
    order = json.loads(sys.stdin.buffer.read())
    for name in (*_LAZY, *order["imports"]):
        importlib.import_module(name)
    names = {"__name__": "__main__", "__builtins__": _builtins(order["allowed"])}
    program = compile(order["code"], "<program>", "exec")
    _leave_user()
    _limit(order)
    _close_doors()
    exec(program, names)
    sys.stdout.flush()


if __name__ == "__main__":
    main() if sys.argv[1:] == [_INSIDE] else _leave_network()
