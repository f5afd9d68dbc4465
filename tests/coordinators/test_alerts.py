"""Alerts reach a real HTTP server where one is asked for, and failing to deliver them changes nothing."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from coordinators.alerts import WEBHOOK_ENV, Alerts, AlertSettings
from coordinators.config import dump_config, load_config
from phases.errors import ConfigError
from recovery.journal import Journal

SECRET = "T0KEN/aVerySecretPath"
PATIENT, HASTY = AlertSettings(send_seconds=20), AlertSettings(send_seconds=0.5)


class Hook:
    """A webhook on this machine that answers with `status`, or not at all where that is 0."""

    def __init__(self) -> None:
        self.status, self.received = 200, list[tuple[str, dict[str, Any]]]()
        self.release = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.received.append((self.path, body))
                if not hook.status:
                    hook.release.wait()
                    return
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    hook = Hook()
    thread = threading.Thread(target=hook.server.serve_forever)
    thread.start()
    monkeypatch.setenv(WEBHOOK_ENV, hook.url)
    yield hook
    hook.release.set()
    hook.server.shutdown()
    thread.join()
    hook.server.server_close()


def failures(run: Path) -> list[str]:
    return [event.data["error"] for event in Journal(str(run)).read("alert_failed")]


def everything_below(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.rglob("*") if file.is_file())


def test_an_alert_is_posted_with_its_run_and_text(tmp_path: Path, hook: Hook) -> None:
    with Alerts(str(tmp_path), PATIENT) as alerts:
        alerts.on_event({"kind": "task_started", "task": "x"})
        alerts.on_event({"kind": "alert", "key": "disk n", "text": "disk runs out", "level": "warning"})
        alerts.send("stopped\nby a fault", level="error")
    paths, messages = zip(*hook.received, strict=True)
    assert set(paths) == {f"/{SECRET}"}
    found = {message["level"]: message for message in messages}
    assert found["warning"]["text"] == f"{tmp_path}: disk runs out"
    assert found["error"]["title"] == "Agent Forge: stopped"
    assert found["error"]["run"] == str(tmp_path)
    assert failures(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "reported"), [(500, "HTTP 500"), (404, "HTTP 404"), (0, "no answer in"), (None, "ConnectError")]
)
def test_one_that_is_not_delivered_is_reported_without_the_url(
    tmp_path: Path, hook: Hook, status: int | None, reported: str, caplog: pytest.LogCaptureFixture
) -> None:
    if status is None:
        hook.server.socket.close()
    else:
        hook.status = status
    with Alerts(str(tmp_path), PATIENT if status != 0 else HASTY) as alerts:
        alerts.send("stopped", level="error")
    (failure,) = failures(tmp_path)
    assert failure.startswith("webhook at 127.0.0.1: ")
    assert reported in failure
    assert failure in caplog.text
    assert SECRET not in everything_below(tmp_path) + caplog.text


def test_nothing_is_sent_unless_asked(tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK_ENV)
    with Alerts(str(tmp_path), PATIENT) as alerts:
        alerts.send("stopped")
    assert hook.received == []
    monkeypatch.setenv("OTHER_HOOK", hook.url)
    with Alerts(str(tmp_path), AlertSettings(webhook_env="OTHER_HOOK")) as alerts:
        alerts.send("stopped")
    assert len(hook.received) == 1


def test_wrong_settings_are_refused_without_telling_the_secret(monkeypatch: pytest.MonkeyPatch, hook: Hook) -> None:
    with pytest.raises(ConfigError, match=r"alerts\.webhook_env = .*not the name") as refused:
        load_config("smoke", overrides=[f"alerts.webhook_env={hook.url}"])
    assert SECRET not in str(refused.value)
    with pytest.raises(ConfigError, match=r"NOT_THERE.*not set"):
        Alerts("run", AlertSettings(webhook_env="NOT_THERE"))
    monkeypatch.setenv(WEBHOOK_ENV, "hooks.example.org/x")
    with pytest.raises(ConfigError, match="not a URL") as refused:
        Alerts("run", AlertSettings())
    assert "example.org" not in str(refused.value)
    assert SECRET not in dump_config(load_config("smoke"))


def test_an_open_wandb_run_has_the_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.delenv(WEBHOOK_ENV, raising=False)
    told = list[tuple[Any, ...]]()
    run = wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True, console="off"))
    try:
        publish = run._interface.publish_alert
        monkeypatch.setattr(run._interface, "publish_alert", lambda *given: (told.append(given), publish(*given)))
        with Alerts(str(tmp_path), PATIENT) as alerts:
            alerts.send("stopped", level="error")
        with Alerts(str(tmp_path), AlertSettings(wandb=False)) as alerts:
            alerts.send("not told")
    finally:
        run.finish()
    assert [given[:3] for given in told] == [("Agent Forge: stopped", "stopped", "ERROR")]
    assert failures(tmp_path) == []
