"""One live process holds a run directory; a dead one does not."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from phases import storage
from phases.errors import BusyError
from recovery.lease import Lease

HOLD = """
import sys, time
from recovery.lease import Lease
with Lease(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["file", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def test_a_held_lease_is_refused_and_a_released_one_is_not(run: str) -> None:
    with Lease(run) as first, pytest.raises(BusyError, match="is working in this run directory"):
        Lease(run).__enter__()
    with Lease(run) as second:
        assert second.epoch > first.epoch


def test_the_lease_of_a_killed_process_is_free(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=f"process {holder.pid}"):
        Lease(str(tmp_path)).__enter__()
    holder.kill()
    holder.wait()
    with Lease(str(tmp_path)) as lease:
        assert lease.epoch == 2


def test_another_host_is_believed_until_its_lease_expires(tmp_path: Path) -> None:
    with Lease(str(tmp_path)) as lease:
        beat = lease._path(lease.epoch) + ".beat"
        owner = storage.read_json(beat)
    storage.write_json(beat, owner | {"host": "elsewhere"})
    with pytest.raises(BusyError, match="on elsewhere"):
        Lease(str(tmp_path)).__enter__()
    storage.write_json(beat, owner | {"host": "elsewhere", "time": owner["time"] - 1000})
    with Lease(str(tmp_path)):
        pass
