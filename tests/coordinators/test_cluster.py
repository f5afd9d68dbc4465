"""A run joins the cluster that it is told to join and no other; a wrong address is refused soon and leaves nothing."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from coordinators import cluster
from coordinators.cluster import check_address, connected
from coordinators.config import RaySettings, load_config
from coordinators.driver import start_run
from phases.errors import ConfigError, ForgeError

FOREIGN = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

LITTER = """
import gc, threading, time, ray
from coordinators.cluster import leave
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
name = ray.put(1).binary()
references = [ray.ObjectRef(name) for _ in range(200_000)]
gc.set_threshold(20)
def litter():
    while references:
        ring = [references.pop()]
        ring.append(ring)
        until = time.perf_counter() + 1e-4
        while time.perf_counter() < until:
            pass
threading.Thread(target=litter, daemon=True).start()
leave()
print(len(references) > 0, gc.isenabled())
"""


@pytest.fixture
def unused() -> str:
    """An address that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether other tests of this process have a cluster makes no difference."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("how", ["config", "environment"])
def test_a_dead_address_is_refused_before_anything_is_written(
    tmp_path: Path, unused: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("RAY_ADDRESS", unused)
    config = load_config("smoke", overrides=[f"ray.address={unused}"] if how == "config" else [])
    with pytest.raises(ConfigError, match=r"ray\.address.* = '127.*nothing answers there.*leave it out"):
        start_run(config, str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:x", "127.0.0.1:99999", "no.such.host.invalid:6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"ray\.address"):
        check_address(address)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("address", [None, "", "local"])
def test_without_an_address_nothing_is_looked_for(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_address(address)
    assert cluster._chosen(address)[1] is None


@pytest.mark.usefixtures("no_ray")
def test_something_else_that_listens_there_is_given_up_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 3.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(ConfigError, match="no Ray cluster that can run this answers there within 3 s"):
            check_address(f"127.0.0.1:{mute.getsockname()[1]}")


@pytest.mark.usefixtures("no_ray")
def test_a_ray_that_does_not_start_is_an_error_that_names_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with (
        pytest.raises(ForgeError, match=r"did not start.*timed out during startup.*forge resume"),
        connected(RaySettings()),
    ):
        pass


@contextmanager
def cluster_of_others(auth_mode: str) -> Iterator[str]:
    """Yield the address of a cluster that somebody else runs on this machine."""
    environment = os.environ | {"RAY_AUTH_MODE": auth_mode}
    process = subprocess.Popen(
        [sys.executable, "-c", FOREIGN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    guard = threading.Timer(900, process.kill)
    guard.start()
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "the other cluster did not start"
    yield address
    process.communicate("")
    guard.cancel()


@pytest.fixture(scope="module")
def foreign() -> Iterator[str]:
    """A cluster with token authentication."""
    with cluster_of_others("token") as address:
        yield address


JOIN = """
import sys
import ray
from coordinators.cluster import check_address, connected
from coordinators.config import RaySettings
check_address(sys.argv[1] or None)
with connected(RaySettings(address=sys.argv[1] or None, object_store_mb=80, dashboard=False)) as joined:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    print(joined, ray.get_runtime_context().gcs_address, is_token_auth_enabled())
"""


@pytest.mark.slow
def test_a_foreign_cluster_is_joined_only_when_named_and_with_its_token(foreign: str) -> None:
    def run(address: str, **variables: str) -> list[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
        root = Path(__file__).parent.parent.parent
        outcome = subprocess.run(
            [sys.executable, "-c", JOIN, address],
            capture_output=True,
            text=True,
            timeout=180,
            cwd=root,
            env=environment | {"PYTHONPATH": str(root)} | variables,
        )
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout.split()

    own = run("")
    assert own[0] == "None"
    assert own[1] != foreign
    assert own[2] == "True"
    assert run(foreign) == [foreign, foreign, "True"]
    assert run("", RAY_ADDRESS=foreign) == [foreign, foreign, "True"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_cluster_whose_token_is_another_is_refused(foreign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(ConfigError, match=r"ray\.address = .*cannot be used"):
        check_address(foreign)


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_cluster_that_runs_other_code_is_refused(foreign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "code_version", lambda: "another")
    with pytest.raises(ConfigError, match="runs other code"):
        check_address(foreign)


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_cluster_without_a_token_is_refused_to_those_who_use_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster_of_others("disabled") as address:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(ConfigError, match=r"tasks run there, but no actor .*set RAY_AUTH_MODE=disabled"):
            check_address(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        check_address(address)


@pytest.mark.slow
def test_references_that_another_thread_collects_do_not_end_the_process() -> None:
    ran = subprocess.run([sys.executable, "-c", LITTER], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout.split()) == (0, ["True", "True"]), ran.stderr
