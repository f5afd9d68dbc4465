"""The sandbox: what it computes, and every way out that we could think of, tried against each layer by itself."""

import http.server
import threading
from pathlib import Path

import pytest

from phases.baking.tools.sandbox import Limits, execute, run_code, screen

FAST = Limits(cpu_seconds=2, wall_seconds=60, memory_mb=256)
REACH = "import random\nos = random._os\nsys = os.sys\n"  # what screening refuses, and here is not screened


def test_it_computes_and_prints():
    result = run_code("import math\nfrom fractions import Fraction\nprint(math.comb(10, 3), Fraction(1, 3))")
    assert (result.outcome, result.output) == ("ok", "120 1/3\n")


def test_modules_that_load_others_late_work():
    code = "from datetime import datetime\nprint(datetime.strptime('2024-05-06', '%Y-%m-%d').day)"
    assert run_code(code).output == "6\n"


def test_an_error_is_told_with_what_was_printed_before():
    result = run_code("print('before')\n1 / 0")
    assert (result.outcome, result.output, result.error) == (
        "error",
        "before\n",
        "ZeroDivisionError: division by zero",
    )


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "import os.path",
        "from subprocess import run",
        "from . import x",
        "import math, socket",
        "().__class__.__base__.__subclasses__()",
        "import random\nrandom._os.system('true')",
        "open('/etc/passwd')",
        "__builtins__",
        "eval('1')",
        "exec('import os')",
        "__import__('os')",
        "def (",
        "x" * 200_000,
    ],
)
def test_screening_refuses_before_anything_runs(code):
    assert screen(code) is not None
    assert run_code(code).outcome == "refused"


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "getattr(print, '__self__')",
        REACH + "os.system('touch /tmp/escaped')",
        REACH + "os.fork()",
        REACH + "os.execv('/bin/sh', ['sh'])",
        REACH + "os.posix_spawn('/bin/true', ['true'], {})",
        REACH + "os.listdir('/')",
        REACH + "os.open('/etc/hostname', os.O_RDONLY)",
        REACH + "os.remove('/etc/hostname')",
        REACH + "os.kill(1, 9)",
        REACH + "sys.modules['builtins'].open('/etc/hostname')",
        REACH + "sys.modules['builtins'].__import__('subprocess')",
        REACH + "sys.modules['io'].open_code('/etc/hostname')",
        REACH + "sys.modules['importlib'].import_module('socket')",
        REACH + "sys.modules['_thread'].start_new_thread(print, ())",
        REACH + "sys.modules['resource'].setrlimit(0, (100, 100))",
        "().__class__.__base__.__subclasses__()[0].__init__.__globals__",
    ],
)
def test_the_hook_refuses_what_screening_did_not_see(code):
    result = execute(code, FAST)
    assert result.outcome in {"error", "killed"}
    assert not Path("/tmp/escaped").exists()


def test_no_network_even_to_this_machine():
    class Handler(http.server.BaseHTTPRequestHandler):
        hits = 0

        def do_GET(self):
            type(self).hits += 1

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        code = f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{server.server_port}')"
        result = execute(code, FAST)
        server.shutdown()
        thread.join()
    assert result.outcome == "error"
    assert Handler.hits == 0


def test_an_endless_loop_ends():
    assert run_code("while True: pass", Limits(cpu_seconds=1, wall_seconds=4)).outcome == "timeout"


def test_a_memory_bomb_is_refused_by_the_kernel():
    result = run_code("x = [0] * 10**9", FAST)
    assert (result.outcome, result.error) == ("error", "MemoryError")


def test_a_flood_of_output_is_cut():
    result = run_code("while True: print('a' * 1000)", FAST)
    assert len(result.output) <= FAST.output_bytes
    assert result.outcome != "ok"


def test_a_huge_error_is_cut():
    assert len(run_code("raise ValueError('a' * 10**7)", FAST).error) <= 1000


def test_the_environment_and_the_folder_are_empty(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    assert execute(REACH + "print(dict(os.environ))", FAST).output in {"{}\n", "{'LC_CTYPE': 'C.UTF-8'}\n"}


def test_ctypes_was_never_there():
    assert execute(REACH + "print('ctypes' in sys.modules, '_ctypes' in sys.modules)", FAST).output == "False False\n"


def test_it_is_another_user_or_one_without_rights():
    result = execute(REACH + "print(os.geteuid())", FAST)
    assert result.output.strip() != "0"
