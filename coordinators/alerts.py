"""Telling people: alerts go to a webhook and to Weights & Biases, as far as they were asked for.

Nothing leaves the machine unless the environment holds a webhook's URL, or W&B is online. The configuration knows only
the variable's name, since a URL is often a secret; no message and no file of a run holds it. Each alert is sent by a
thread of its own. One that cannot be delivered is reported, and changes nothing else.
"""

import logging
import os
import re
import sys
import threading
import time
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from pydantic import Field, field_validator
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from phases.errors import ConfigError
from phases.settings import Settings
from recovery.health import HealthSettings
from recovery.journal import Journal

WEBHOOK_ENV = "FORGE_WEBHOOK_URL"
_TITLE_CHARACTERS = 63  # W&B's limit
_ATTEMPTS = 3
_log = logging.getLogger(__name__)


class AlertSettings(Settings):
    """What is worth an alert, and who is told of it and of a run that stops."""

    health: HealthSettings = HealthSettings()
    webhook_env: str = Field(
        default=WEBHOOK_ENV,
        description="environment variable with the URL that alerts are posted to; where it is not set, none are",
    )
    wandb: bool = Field(default=True, description="alert in W&B too; it sends what it has in its mode `online` only")
    send_seconds: float = Field(
        default=10.0, gt=0, description="for one attempt; and at most three times it at the end"
    )

    @field_validator("webhook_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            fix = f"put the URL into the environment variable {WEBHOOK_ENV}, and its name here where it is another"
            raise ConfigError.of("alerts.webhook_env", "...", "not the name of an environment variable", fix)
        return name


class Alerts:
    """Sends the alerts of one run; a context manager, whose end waits for what is on its way.

    Raises `ConfigError` where the variable that the configuration names is not there, or holds no URL.
    """

    def __init__(self, run: str, settings: AlertSettings) -> None:
        self.run, self.settings = run, settings
        self._url = webhook_url(settings)
        self._senders = list[threading.Thread]()
        self._failures = list[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        patience = _ATTEMPTS * self.settings.send_seconds
        deadline = time.monotonic() + patience
        for sender in self._senders:
            sender.join(max(deadline - time.monotonic(), 0))
            if sender.is_alive():
                self._failures.append(f"{sender.name}: no answer in {patience:g} s")
        for failure in self._failures:
            _log.warning("an alert was not delivered: %s", failure)
            Journal(self.run).append("alert_failed", error=failure)
        self._senders.clear()
        self._failures.clear()

    def on_event(self, event: dict[str, Any]) -> None:
        """Take an event of the run and send it on where it is an alert."""
        if event["kind"] == "alert":
            self.send(event["text"], level=event["level"])

    def send(self, text: str, *, level: str = "warning") -> None:
        """Send an alert; returns at once. `level` is `warning` or `error`."""
        title = f"Agent Forge: {text.splitlines()[0]}"[:_TITLE_CHARACTERS]
        if self._url is not None:
            message = {"run": self.run, "level": level, "title": title, "text": f"{self.run}: {text}"}
            host = urlsplit(self._url).hostname or ""
            sender = threading.Thread(target=self._post, args=(message, host), daemon=True, name=f"webhook at {host}")
            self._senders.append(sender)
            sender.start()
        if self.settings.wandb:
            self._tell_wandb(title, text, level)

    def _post(self, message: dict[str, str], host: str) -> None:
        """Post, again where the network failed. What httpx says may hold the URL, so only its kind is told."""
        assert self._url is not None
        network = retry_if_exception_type(httpx.TransportError)
        attempts = Retrying(retry=network, wait=wait_exponential(0.2), stop=stop_after_attempt(_ATTEMPTS), reraise=True)
        try:
            answer = attempts(httpx.post, self._url, json=message, timeout=self.settings.send_seconds)
        except Exception as error:  # whatever it is, the run must not end for it
            self._failures.append(f"webhook at {host}: {type(error).__name__}")
            return
        if not answer.is_success:
            self._failures.append(f"webhook at {host}: HTTP {answer.status_code}")

    def _tell_wandb(self, title: str, text: str, level: str) -> None:
        """Alert in the W&B run that the tracker has open in this process, if any."""
        if (wandb := sys.modules.get("wandb")) is None or wandb.run is None:
            return
        try:
            wandb.run.alert(title=title, text=text, level="ERROR" if level == "error" else "WARN")
        except Exception as error:  # W&B raises what it likes
            self._failures.append(f"W&B: {error}")


def webhook_url(settings: AlertSettings) -> str | None:
    """Return the URL from the environment, None where there is none. Raises `ConfigError` as `Alerts` does."""
    url = os.environ.get(settings.webhook_env)
    if not url:
        if settings.webhook_env == WEBHOOK_ENV:
            return None
        fix = "export it with the webhook's URL, or leave alerts.webhook_env out"
        raise ConfigError.of("alerts.webhook_env", settings.webhook_env, "not set in the environment", fix)
    if not re.match(r"https?://[^/\s]+", url):
        fix = "let it hold an http:// or https:// URL"
        raise ConfigError.of("alerts.webhook_env", settings.webhook_env, "what it holds is not a URL", fix)
    return url
