"""Phase 6 on real actors: nine agents do its steps, a killed one is replaced, and what it computes stays the same."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.agent import NAMESPACE
from coordinators.baking import BakingCoordinator
from coordinators.config import PipelineConfig
from coordinators.phase import RunContext
from coordinators.schedule import check_plan
from phases import modeldir, rundir, storage
from phases.baking.config import (
    BakingConfig,
    EvaluationConfig,
    InstructionConfig,
    OptimisationConfig,
    PromptBakingConfig,
)  # fmt: skip
from phases.baking.evidence import AGENTS, FOLDER, STEPS
from phases.baking.instruct import dialogue_tokenizer
from phases.baking.lessons import LESSONS
from phases.cognate.loading import model_config
from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.contract import PhaseResult
from phases.training.config import TrainingConfig
from recovery.journal import Journal

TRAINING = TrainingConfig(
    steps=8, batch_size=8, seq_len=32, learning_rate=5e-3, warmup_steps=2, checkpoint_every=2, precision="fp32"
)
BAKING = BakingConfig(
    instruction=InstructionConfig(training=TRAINING),
    prompt_baking=PromptBakingConfig(training=TRAINING, trajectories=24),
    evaluation=EvaluationConfig(dialogues=16, tool_requests=16),
    optimisation=OptimisationConfig(rounds=3, tokens=8, max_loss=0.5),
)
CONFIG = PipelineConfig(name="test", baking=BAKING)


def _run(folder: Path) -> str:
    """Make a run whose first phase has handed on a model."""
    torch.manual_seed(0)
    tokenizer = dialogue_tokenizer(LESSONS, 400)
    config = TitanConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=32, n_layers=1, n_heads=2, hidden=64, tied=True,
        segment_len=128, max_ponder_steps=1, train_ponder_steps=1, memory=MemoryConfig(hidden=16),
    )  # fmt: skip
    model = TinyTitan(config)
    with torch.no_grad():
        for parameter in model.memory.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    run = str(folder)
    uri = f"{rundir.phase_folder('cognate')}/model"
    ref = modeldir.save_model(
        storage.join(run, uri),
        tensors=model.state_dict(),
        config=model_config(config),
        tokenizer=tokenizer.to_str(),
        lineage=modeldir.Lineage(phase="cognate", seed=0),
    )
    now = datetime.now(UTC)
    handed = PhaseResult(
        success=True, phase="cognate", model=ref.model_copy(update={"uri": uri}), start_time=now, end_time=now,
        duration_seconds=0,
    )  # fmt: skip
    rundir.write_result(run, handed)
    return run


def _coordinator(run: str, on_event: Any = None) -> BakingCoordinator:
    journal = Journal(run)

    def emit(kind: str, **data: Any) -> None:
        if kind != "progress":
            journal.append(kind, **data)
        if on_event is not None:
            on_event(kind, data)

    return BakingCoordinator(RunContext(run=run, emit=emit), CONFIG)


def test_the_plan_is_a_graph_of_nine_agents(tmp_path: Path) -> None:
    tasks, roles = _coordinator(_run(tmp_path)).plan()
    check_plan(tasks, {name: role.agent for name, role in roles.items()})
    assert set(roles) == set(AGENTS)
    assert {task.agent for task in tasks} == set(AGENTS)


def test_it_runs_only_where_it_is_named() -> None:
    assert "baking" not in CONFIG.phases
    assert "baking" in PipelineConfig(name="test", phases=("cognate", "baking")).phases


@pytest.mark.slow
def test_nine_agents_do_the_seven_steps_though_one_is_killed(tmp_path: Path, ray_cluster: None) -> None:
    undisturbed, disturbed = _run(tmp_path / "a"), _run(tmp_path / "b")
    result = asyncio.run(_coordinator(undisturbed).run())
    assert result.metrics["agents_completed"] == 9
    summary = json.loads((tmp_path / "a" / FOLDER / "baking_summary.json").read_text())
    assert all(summary["steps"][step] for step in STEPS[:-1])
    log = json.loads((tmp_path / "a" / FOLDER / "agent_coordination_log.json").read_text())
    assert {entry["agent"] for entry in log} == set(AGENTS)

    killed = list[str]()

    def kill_once(kind: str, data: dict[str, Any]) -> None:
        if kind == "task_started" and data["task"] == "bake" and not killed:
            killed.append(data["agent"])
            ray.kill(ray.get_actor(f"b/baking/{data['agent']}", NAMESPACE))

    again = asyncio.run(_coordinator(disturbed, kill_once).run())
    assert again.model is not None
    assert result.model is not None
    assert again.model.sha256 == result.model.sha256
    recovered = json.loads((tmp_path / "b" / FOLDER / "error_recovery_log.json").read_text())
    assert [entry["task"] for entry in recovered] == ["bake"]
    assert killed == ["ModelOptimizer"]
