"""A run that has to stop says why to everybody: on stderr, in its journal, in `forge status` and to the webhook."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from recovery.journal import Journal

ROOT = Path(__file__).parent.parent.parent
SECRET = "aVerySecretPath"
CAUSE = "tiny.txt: 1 documents leave nothing for"
pytestmark = pytest.mark.slow


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's URL, and what it is sent."""
    received = list[dict[str, Any]]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{SECRET}", received
    server.shutdown()
    thread.join()
    server.server_close()


def forge(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "forge.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment | {"WANDB_MODE": "disabled"} | variables,
    )


def test_a_run_that_stops_says_why(tmp_path: Path, hook: tuple[str, list[dict[str, Any]]]) -> None:
    (tmp_path / "tiny.txt").write_text("too little\n")
    run, (url, received) = tmp_path / "run", hook
    options = ("--preset", "smoke", "--corpus", str(tmp_path / "tiny.txt"), "--run-dir", str(run))
    driver = forge("run", *options, FORGE_WEBHOOK_URL=url)
    deadline = time.monotonic() + 120
    while not (run / "journal").exists():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    watcher = forge("status", str(run), "--watch")
    watched, _ = watcher.communicate(timeout=300)
    _, told = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "Traceback" not in told
    assert CAUSE in told
    assert "\nvalidation; correct what the message names, then resume\n" in told
    assert f"`forge resume {run}` goes on" in told
    assert watcher.returncode == 0
    lines = watched.splitlines()
    assert lines[0] == f"run: {run} (smoke)"
    assert lines[1].startswith("state: running: process")
    assert "phase cognate: begun" in lines
    assert any(line.startswith("state: stopped: corpus:") and CAUSE in line for line in lines)
    ((message),) = received
    assert message["level"] == "error"
    assert CAUSE in message["text"]
    assert message["run"] == str(run)
    events = {event.kind: event.data for event in Journal(str(run)).read()}
    assert CAUSE in events["run_stopped"]["error"]
    assert "alert_failed" not in events
    kept = b"".join(file.read_bytes() for file in run.rglob("*") if file.is_file())
    assert SECRET.encode() not in kept
