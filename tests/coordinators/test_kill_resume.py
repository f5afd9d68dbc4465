"""SIGKILL the driver anywhere; `forge resume` ends with the bytes of a run that nobody disturbed.

Also what surrounds that: a finished run is left alone, a tampered one is refuted, a busy one is refused.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from phases.rundir import finished_phases, read_result
from recovery.journal import Journal

ROOT = Path(__file__).parent.parent.parent
CONFIG = [
    "--preset=smoke",
    "--phases=cognate,evomerge",
    "--set=cognate.warm_up.steps=24",
    "--set=cognate.training.steps=24",
    "--set=cognate.evaluation.task_instances=4",
    "--set=cognate.evaluation.text_tokens=1024",
]
COGNATE = [*CONFIG, "--phases=cognate"]
pytestmark = pytest.mark.slow


def forge(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "forge.py"), *arguments]
    environment = os.environ | {"WANDB_MODE": "disabled"}
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert not check or outcome.returncode == 0, outcome.stderr
    return outcome


def hashes(run: Path) -> dict[str, str]:
    results = {phase: read_result(str(run), phase) for phase in finished_phases(str(run))}
    handed_on = {phase: result.model.sha256 for phase, result in results.items() if result.model}
    return {role: ref.sha256 for result in results.values() for role, ref in result.models.items()} | handed_on


def kill_at_each(moments: Sequence[str], run: Path, *arguments: str) -> None:
    """SIGKILL what starts a run at the first moment and each `forge resume` at the next one, then let it finish.

    What a finished task leaves behind is a moment at any time, its checkpoints only where nothing later was before.
    """
    for moment in moments:
        kill_at(moment, run, *arguments)
        arguments = ("resume", str(run))
    forge(*arguments)


def kill_at(moment: str, run: Path, *arguments: str) -> None:
    """SIGKILL a driver as soon as a file of its run matches."""
    command = [sys.executable, str(ROOT / "forge.py"), *arguments]
    environment = os.environ | {"WANDB_MODE": "disabled"}
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 180
    while not list(run.glob(moment)):
        assert driver.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    forge("run", *CONFIG, "--run-dir", str(run))
    return run


def checkpoint(role: str) -> str:
    return f"01_cognate/checkpoints/{role}/*/manifest.json"


def test_killed_and_resumed_ends_with_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    moments = [
        "config.yaml",
        "00_corpus/tokenizer.json",
        checkpoint("warm_up"),
        "01_cognate/models/warm_up/lineage.json",
        checkpoint("reasoning"),
        "01_cognate/models/reasoning/lineage.json",
        "01_cognate/model/lineage.json",
    ]
    kill_at_each(moments, run, "run", *COGNATE, "--run-dir", str(run))
    assert hashes(run).items() <= hashes(undisturbed).items()
    executed = sum(1 for _ in (run / "01_cognate" / "metrics.jsonl").open())
    clean = sum(1 for _ in (undisturbed / "01_cognate" / "metrics.jsonl").open())
    assert executed < 2 * clean, "work was started again from nothing"


def test_a_search_killed_and_resumed_finds_the_same_model(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    moments = ["02_evomerge/ledger/*", "02_evomerge/evomerge_50gen_final_results.json"]
    kill_at_each(moments, run, "run", *CONFIG, "--run-dir", str(run))
    assert hashes(run) == hashes(undisturbed)
    ledgers = [{entry.name for entry in (path / "02_evomerge" / "ledger").iterdir()} for path in (run, undisturbed)]
    assert ledgers[0] == ledgers[1]


def test_thinking_killed_and_resumed_ends_with_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    arguments = ["phase", "quietstar", "--model", str(undisturbed / "02_evomerge" / "model"), "--preset", "smoke"]
    arguments += ["--set=quietstar.training.steps=12"]
    clean, run = tmp_path / "clean", tmp_path / "run"
    forge(*arguments, "--out", str(clean))
    moments = [
        "00_start/model/lineage.json",
        "03_quietstar/checkpoints/stage 0/*/manifest.json",
        "03_quietstar/control/lineage.json",
        "03_quietstar/model/thinking/lineage.json",
        "03_quietstar/thoughts.json",
    ]
    kill_at_each(moments, run, *arguments, "--out", str(run))
    found = hashes(run)
    assert found == hashes(clean)
    assert set(found) == {"thinking", "control", "quietstar"}
    claims = [[(c.key, c.value) for c in read_result(str(path), "quietstar").claims] for path in (run, clean)]
    assert claims[0] == claims[1]


@pytest.mark.parametrize("victim", ["ray::PipelineCoordinator", "ray::Pretrainer"])
def test_a_killed_actor_is_replaced_without_anyone_asking(undisturbed: Path, tmp_path: Path, victim: str) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "forge.py"), "run", *COGNATE, "--run-dir", str(run)]
    environment = os.environ | {"WANDB_MODE": "disabled"}
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 120
    while not list(run.glob(checkpoint("warm_up"))):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed = [process for process in descendants(driver.pid) if victim in command_of(process)]
    assert killed
    os.kill(killed[0], signal.SIGKILL)
    assert driver.wait(timeout=120) == 0
    assert hashes(run).items() <= hashes(undisturbed).items()
    kinds = [event.kind for event in Journal(str(run)).read()]
    assert ("pipeline_restarted" if "Pipeline" in victim else "recovery") in kinds


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        parents[int(stat.parent.name)] = int(fields[1])
    found, size = {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return sorted(found - {pid})


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_a_finished_run_is_left_as_it_is(undisturbed: Path) -> None:
    before = sorted((undisturbed / "journal").iterdir())
    forge("resume", str(undisturbed))
    assert sorted((undisturbed / "journal").iterdir()) == before
    again = forge("run", *CONFIG, "--run-dir", str(undisturbed), check=False)
    assert again.returncode == 1
    assert "there is a run in it" in again.stderr


def test_verify_holds_and_names_what_was_tampered_with(undisturbed: Path, tmp_path: Path) -> None:
    shown = json.loads(forge("verify", str(undisturbed), "--json").stdout)
    assert shown["ok"]
    assert {"claimed", "measured", "tolerance"} <= set(shown["findings"][-1])

    def refuted(name: str) -> str:
        outcome = forge("verify", str(tmp_path / name), check=False)
        assert outcome.returncode == 1
        return outcome.stdout.replace("\n", "")

    changed = shutil.copytree(undisturbed, tmp_path / "number") / "01_cognate" / "result.json"
    result = json.loads(changed.read_text())
    (claim,) = [claim for claim in result["claims"] if claim["key"] == "cognate/reasoning/bits_per_byte"]
    claim["value"] -= 0.1
    changed.write_text(json.dumps(result))
    assert "FAIL cognate/reasoning/bits_per_byte" in (text := refuted("number"))
    assert "altered after the run" in text

    weights = shutil.copytree(undisturbed, tmp_path / "byte") / "01_cognate/models/reasoning/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert "FAIL model 01_cognate/models/reasoning" in refuted("byte")

    unknown = shutil.copytree(undisturbed, tmp_path / "probe") / "01_cognate" / "result.json"
    unknown.write_text(unknown.read_text().replace('"cognate/ponder_steps"', '"cognate/nothing"'))
    assert "probe cognate/nothing: not known" in refuted("probe")
