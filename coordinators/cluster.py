"""The Ray cluster of a run: one of its own on this machine, or one that it is told to join.

Only `ray.address` (`--address`) or RAY_ADDRESS makes a run join a cluster; what else runs on the machine, or has left
its files there, is not looked at. Ray itself tries a wrong address for many minutes and prints stack traces, so a child
process tries first, with a deadline, and also runs this code in a task and an actor there. All of that is before a run
writes anything. Token authentication is on: Ray's default for its own clusters, and used on others where there is one.
"""

import gc
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import RayError

from coordinators.config import RaySettings
from phases.errors import ConfigError, ForgeError
from phases.version import code_version

JOIN_SECONDS = 90.0
_CONNECT_SECONDS = 5.0
_PROBE = "import sys; sys.argv[:] = sys.argv[1:]; from coordinators.cluster import probe; probe(sys.argv.pop())"


def check_address(address: str | None) -> None:
    """Raise `ConfigError` where the cluster that a run would join is not there or cannot run it."""
    field, found = _chosen(address)
    if found is None or ray.is_initialized():
        return
    fix = "start that cluster, correct the address, or leave it out to use this machine"
    if problem := _no_answer(found) or _no_use(found):
        raise ConfigError.of(field, found, problem, fix)


@contextmanager
def connected(settings: RaySettings) -> Iterator[str | None]:
    """Join the cluster at the address, which is yielded, or start one on this machine and stop it afterwards."""
    _, found = _chosen(settings.address)
    if ray.is_initialized():
        yield None
        return
    if found is not None:
        _join(found)
    else:
        _start(settings)
    try:
        yield found
    finally:
        leave()


def leave() -> None:
    """Disconnect, and stop a Ray that was started here, with the collector of cycles off meanwhile.

    Ray ends the process with status 1 where a reference is released just as its core worker has gone, and another
    library's thread may run the collector at any time.
    """
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def probe(address: str) -> None:
    """Join a cluster, run this code on a worker there, and print what came of it as JSON."""
    try:
        _join(address)
        version: str = ray.get(ray.remote(num_cpus=0)(_version).remote())
        print(json.dumps({"version": version} | _actors_problem()))
    except Exception as error:  # all of them are told to whoever gave the address
        print(json.dumps({"error": _innermost(error)}))


def _join(address: str) -> None:
    """Connect, with the token where there is one; Ray looks for it only where the address is `auto`."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)


def _start(settings: RaySettings) -> None:
    """Start Ray on this machine. Raises `ForgeError` where it does not come up, e.g. since the machine is too busy."""
    try:
        ray.init(
            address="local",
            object_store_memory=settings.object_store_mb << 20,
            include_dashboard=settings.dashboard,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except Exception as error:  # Ray raises a bare one
        ray.shutdown()
        fix = "free CPU, memory or /dev/shm, then forge resume"
        raise ForgeError(f"Ray did not start on this machine ({_innermost(error)}); {fix}") from error


def _chosen(address: str | None) -> tuple[str, str | None]:
    """Return the setting that names the cluster to join, and its address, None for one of our own."""
    field = "ray.address"
    if not address:
        field, address = "ray.address (from RAY_ADDRESS)", os.environ.get("RAY_ADDRESS")
    return field, None if address in (None, "", "local") else address


def _no_answer(address: str) -> str | None:
    """Return why nothing can be reached at HOST:PORT; other kinds of addresses are left to Ray."""
    host, colon, port = address.rpartition(":")
    if "://" in address or address == "auto":
        return None
    if not colon or not port.isdecimal():
        return "not HOST:PORT or `auto`"
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        return f"nothing answers there ({error})"
    return None


def _no_use(address: str) -> str | None:
    """Return why a run could not go on there, as a child process finds."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    command = [sys.executable, "-c", _PROBE, sys.argv[0], address]
    try:
        outcome = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=JOIN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no Ray cluster that can run this answers there within {JOIN_SECONDS:g} s"
    lines = outcome.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {"error": outcome.stderr.strip()[-500:]}
    if "error" in found:
        return f"cannot be used: {found['error']}"
    if found["version"] != code_version():
        return f"runs other code: {found['version']} there, {code_version()} here"
    return None


def _version() -> str:
    return code_version()


class _Subject:
    """What an actor is made of to see whether there can be one."""

    def answer(self) -> None:
        """Answer."""


def _actors_problem() -> dict[str, str]:
    """Return as `error` why an actor does not live on the cluster that was joined; nothing where it does.

    A cluster without token authentication runs tasks for a driver that has a token, but cannot ask it about its actors.
    """
    remote: Any = ray.remote
    try:
        ray.get(remote(num_cpus=0)(_Subject).remote().answer.remote())
    except RayError as error:
        fix = ""
        if is_token_auth_enabled():
            fix = "; a token is used here, and if that cluster uses none, set RAY_AUTH_MODE=disabled"
        return {"error": f"tasks run there, but no actor ({_innermost(error)}){fix}"}
    return {}


def _innermost(error: BaseException) -> str:
    """Return what a person needs of an error of Ray: the last line of the first cause."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
