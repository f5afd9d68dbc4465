"""The Ray Serve application: a replica that loads a model directory, behind Serve's HTTP proxy."""

import ipaddress
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import Any, Self

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions

from coordinators.cluster import leave
from phases.cognate.loading import load_model
from phases.errors import ConfigError
from phases.quietstar.loading import thinker_of
from serve.api import build_api
from serve.engine import TorchEngine

KEY_VARIABLE = "FORGE_API_KEY"
_OBJECT_STORE_BYTES = 100 << 20


@serve.ingress()
class ModelServer:
    """One replica. The key comes from the environment and is never part of a configuration."""

    def __init__(self, model_dir: str, name: str) -> None:
        loaded = load_model(model_dir)
        self.engine = TorchEngine(loaded.model, loaded.tokenizer, thinker=thinker_of(loaded, model_dir))
        self.name = name

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self.engine, self.name, os.environ.get(KEY_VARIABLE))

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        self.engine.check()


@dataclass(frozen=True)
class ServedModel:
    """A running endpoint; leaving the `with` block stops it."""

    name: str
    url: str
    owns_ray: bool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the endpoint, and Ray where it was started for it."""
        serve.shutdown()
        if self.owns_ray:
            leave()


def serve_model(model_dir: str, *, name: str, host: str = "127.0.0.1", port: int = 8000) -> ServedModel:
    """Serve a model directory and return when it answers; port 0 takes a free one.

    Raises `ConfigError` for an address other than loopback without FORGE_API_KEY, and for a port that is taken;
    `ArtifactError` where the directory is no whole model.
    """
    if not _is_loopback(host) and not os.environ.get(KEY_VARIABLE):
        fix = f"set the environment variable {KEY_VARIABLE}, or bind to 127.0.0.1"
        raise ConfigError.of("host", host, "reachable from elsewhere without a key", fix)
    port = _free_port(host, port)
    model_dir = model_dir if "://" in model_dir else os.path.abspath(model_dir)
    thinker_of(load_model(model_dir), model_dir)  # a damaged model is named here and not in a replica's log
    owns_ray = not ray.is_initialized()
    if owns_ray:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "local"),
            log_to_driver=False,
            logging_level=logging.ERROR,
            **_local_options(),
        )
    serve.start(http_options=HTTPOptions(host=host, port=port))
    key = {KEY_VARIABLE: os.environ[KEY_VARIABLE]} if KEY_VARIABLE in os.environ else {}
    deployment: Any = serve.deployment(
        name=name,
        max_ongoing_requests=64,
        health_check_period_s=5,
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": key}},
    )(ModelServer)
    serve.run(deployment.bind(model_dir, name), name=name, route_prefix="/")
    return ServedModel(name, f"http://{host}:{port}", owns_ray)


def wait_for_interrupt() -> None:
    """Block until SIGINT or SIGTERM."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


def _local_options() -> dict[str, Any]:
    if os.environ.get("RAY_ADDRESS"):
        return {}
    return {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0. Raises `ConfigError` where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError.of(
                "port", port, f"cannot be bound ({error.strerror})", "choose another --port"
            ) from error
        return int(probe.getsockname()[1])
