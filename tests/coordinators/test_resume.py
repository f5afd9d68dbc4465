"""A run whose machine died is resumed by two at once: one goes on, and ends with the bytes of an undisturbed run.

Also what a damaged journal means to who reads it: a torn end is recovered, a change before whole events is refuted.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from phases.rundir import read_result
from recovery.journal import LOSS, Journal

ROOT = Path(__file__).parent.parent.parent
CONFIG = [
    "--preset=smoke",
    "--set=cognate.warm_up.steps=24",
    "--set=cognate.training.steps=24",
    "--set=cognate.evaluation.task_instances=4",
    "--set=cognate.evaluation.text_tokens=1024",
    "--phases=cognate",
]
ENVIRONMENT = os.environ | {"WANDB_MODE": "disabled"}
pytestmark = pytest.mark.slow


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "forge.py"), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def model_hash(run: Path) -> str:
    model = read_result(str(run), "cognate").model
    assert model is not None
    return model.sha256


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    code, output = finish(start("run", *CONFIG, f"--run-dir={run}"))
    assert code == 0, output
    return run


def test_of_two_that_resume_after_a_power_failure_one_does(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    driver = start("run", *CONFIG, f"--run-dir={run}")
    deadline = time.monotonic() + 180
    while not list(run.glob("01_cognate/checkpoints/warm_up/*/manifest.json")):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    machine = psutil.Process(driver.pid)
    for process in [machine, *machine.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.communicate()
    newest = max((run / "journal").glob("*.json"))
    newest.write_bytes(newest.read_bytes()[:50])

    outcomes = sorted(finish(process) for process in [start("resume", str(run)), start("resume", str(run))])
    assert [code for code, _ in outcomes] == [0, 1], outcomes
    assert "is working in this run directory" in outcomes[1][1] or "at the same moment" in outcomes[1][1]
    assert model_hash(run) == model_hash(undisturbed)
    (loss,) = Journal(str(run)).read(LOSS)
    assert loss.data["files"] == [f"{newest.name}.damaged-1"]


def test_a_damaged_end_is_recovered_and_a_changed_middle_is_refuted(undisturbed: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(undisturbed, tmp_path / "torn")
    newest = max((torn / "journal").glob("*.json"))
    newest.write_bytes(b"")
    code, output = finish(start("resume", str(torn)))
    assert code == 0, output
    assert model_hash(torn) == model_hash(undisturbed)
    code, output = finish(start("verify", str(torn)))
    assert code == 0, output

    changed = shutil.copytree(undisturbed, tmp_path / "changed")
    middle = sorted((changed / "journal").glob("*.json"))[3]
    middle.write_text(middle.read_text().replace('"cognate"', '"cognite"'))
    for command, said in (("resume", "this was no crash: restore it"), ("verify", "FAIL journal")):
        code, output = finish(start(command, str(changed)))
        assert code == 1
        assert said in output.replace("\n", " ")
        assert middle.name in output.replace("\n", "")
