"""Phase 6 on a tiny model, function by function: what it writes, what its probes find again, what it refuses."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from phases import modeldir, storage
from phases.baking import judge, phase, result, tuning
from phases.baking.config import (
    BakingConfig,
    EvaluationConfig,
    InstructionConfig,
    OptimisationConfig,
    PromptBakingConfig,
)
from phases.baking.evidence import AGENTS, FOLDER, STEPS, Evidence, keep, kept, require_complete
from phases.baking.optimise.package import open_package
from phases.baking.optimise.quality import agreement
from phases.baking.optimise.titan_runtime import OnnxTitan
from phases.baking.phase import MODEL, STATE, STEERABLE, Order
from phases.cognate.loading import load_model, model_config
from phases.cognate.titan import TinyTitan
from phases.contract import ModelRef
from phases.errors import ArtifactError, ConfigError, NumericalError
from phases.probes import RunFiles, measure
from phases.training.config import TrainingConfig

TRAINING = TrainingConfig(steps=12, batch_size=8, seq_len=32, learning_rate=5e-3, warmup_steps=2, precision="fp32")
CONFIG = BakingConfig(
    instruction=InstructionConfig(training=TRAINING),
    prompt_baking=PromptBakingConfig(training=TRAINING.model_copy(update={"weight_decay": 0.0}), trajectories=40),
    evaluation=EvaluationConfig(dialogues=16, tool_requests=16),
    optimisation=OptimisationConfig(rounds=3, tokens=8, max_loss=0.5),
)


def _order(run: str, model: TinyTitan, tokenizer: Tokenizer, config: BakingConfig = CONFIG) -> Order:
    ref = modeldir.save_model(
        storage.join(run, "parent"),
        tensors=model.state_dict(),
        config=model_config(model.config),
        tokenizer=tokenizer.to_str(),
        lineage=modeldir.Lineage(phase="cognate", seed=0),
    )
    return Order(run, ref.model_copy(update={"uri": "parent"}), config, 0)


def _train(order: Order) -> ModelRef:
    phase.instruct(order, state=None, save=lambda state: None, on_step=lambda step: None)
    return phase.bake_model(order, state=None, save=lambda state: None, on_step=lambda step: None)


@pytest.mark.slow
def test_the_phase_from_hand_off_to_result(tmp_path: Path, titan: TinyTitan, tokenizer: Tokenizer) -> None:
    order, start = _order(str(tmp_path), titan, tokenizer), datetime.now(UTC)
    phase.hand_off(order)
    with pytest.raises(ArtifactError, match="no evidence from ModelOptimizer"):
        result.finish(order, start, [], [])
    tuning.adapt(order)
    ref = _train(order)
    assert _train(order) == ref  # there already
    judge.validate(order)
    tuning.optimise_graph(order)
    tuning.transform(order)
    outcome = tuning.accelerate(order)
    assert {candidate.name for candidate in outcome.candidates} >= {"fp32", "int8"}
    tuning.save_memory(order)
    tuning.profile(order)
    packed = tuning.prepare(order)
    assert packed.measured["smallest_cosine"] > 0.999
    path, settings = open_package(tmp_path / tuning.PACKAGE)
    packed_model = OnnxTitan(path, settings)
    text = np.arange(20, 220).reshape(1, 200)  # over the end of a segment, where memory is written
    with torch.no_grad():
        wanted = load_model(str(tmp_path / MODEL), device="cpu").model(torch.from_numpy(text))[0].numpy()
    found = packed_model.stream().read(text).logits
    assert agreement([[wanted]], [[found]]).mean > 0.9
    assert packed_model.stream().greedy(text, 5).shape == (1, 5)
    audited = judge.audit(order)
    assert not audited.rejected
    (tmp_path / STATE).rename(tmp_path / "elsewhere")
    (tmp_path / STATE).write_bytes(b"another")
    assert judge.audit(order).rejected.keys() == {f"ModelOptimizer: {STATE}"}
    (tmp_path / "elsewhere").rename(tmp_path / STATE)
    judge.audit(order)
    finished = result.finish(order, start, [{"kind": "task_finished"}], [])
    assert finished.model == ref
    assert finished.metrics["agents_completed"] == 9
    assert {"tools_baked", "persona_traits", "tool_accuracy", "persona_coherence", "ready_for_adas"} <= set(
        finished.metrics
    )
    for claim in finished.claims:
        assert measure(RunFiles(order.run), claim.probe).value == pytest.approx(claim.value, abs=claim.tolerance)
    summary = json.loads((tmp_path / FOLDER / result.SUMMARY).read_text())
    assert all(summary["steps"][step] for step in STEPS[:-1])
    state = torch.load(tmp_path / STATE, weights_only=True)
    baked = load_model(str(tmp_path / MODEL)).model.state_dict()
    assert all(torch.equal(state[name], baked[name]) for name in baked)
    assert modeldir.is_model(str(tmp_path / STEERABLE))


def test_less_memory_gives_the_same_bytes(tmp_path: Path, titan: TinyTitan, tokenizer: Tokenizer) -> None:
    short = TRAINING.model_copy(update={"steps": 2})
    instruction = CONFIG.instruction.model_copy(update={"training": short})
    baking = CONFIG.prompt_baking.model_copy(update={"training": short, "trajectories": 8})
    config = CONFIG.model_copy(update={"instruction": instruction, "prompt_baking": baking})
    orders = [_order(str(tmp_path / name), titan, tokenizer, config) for name in ("plenty", "little")]
    assert _train(orders[0]).sha256 == _train(replace(orders[1], frugal=True)).sha256


def test_what_is_wrong_is_said_before_work_starts(tmp_path: Path, titan: TinyTitan, tokenizer: Tokenizer) -> None:
    order = _order(str(tmp_path), titan, tokenizer)
    wrong_tools = Order(order.run, order.parent, CONFIG.model_copy(update={"tools": "teleport"}), 0)
    with pytest.raises(ConfigError, match="no such tool"):
        phase.hand_off(wrong_tools)
    wrong_hash = Order(order.run, order.parent.model_copy(update={"sha256": "0" * 64}), CONFIG, 0)
    with pytest.raises(ArtifactError, match="expected 000"):
        phase.hand_off(wrong_hash)
    short = TinyTitan(titan.config.model_copy(update={"segment_len": 32}))
    with pytest.raises(ConfigError, match="tokens"):
        phase.hand_off(_order(str(tmp_path / "short"), short, tokenizer))
    assert not kept(order.run)


def test_a_model_that_is_not_finite_is_refused(tmp_path: Path, titan: TinyTitan, tokenizer: Tokenizer) -> None:
    order = _order(str(tmp_path), titan, tokenizer)
    path = tmp_path / "parent" / modeldir.WEIGHTS
    tensors = modeldir.load_tensors(str(tmp_path / "parent"))
    tensors["norm.weight"][0] = float("nan")
    from safetensors.torch import save_file

    save_file(tensors, path)
    lineage = json.loads((tmp_path / "parent" / modeldir.LINEAGE).read_text())
    lineage["files"][modeldir.WEIGHTS] = storage.sha256(str(path))
    (tmp_path / "parent" / modeldir.LINEAGE).write_text(json.dumps(lineage))
    ref = modeldir.open_ref(str(tmp_path / "parent")).model_copy(update={"uri": "parent"})
    with pytest.raises(NumericalError, match=r"norm\.weight"):
        phase.hand_off(Order(order.run, ref, CONFIG, 0))


def test_gates_compare_with_the_prompted_model() -> None:
    def measured(ours: float, after: float) -> dict[str, object]:
        rate = {"baked": {"all": {"rate": ours}}, "prompted": {"all": {"rate": 0.9}}}
        return {"tools": rate, "divergence": {"before": 0.5, "after": after}}

    assert not judge.gates(measured(0.88, 0.01), CONFIG)
    assert judge.gates(measured(0.8, 0.01), CONFIG).keys() == {"tool_accuracy"}
    assert judge.gates(measured(0.9, 0.6), CONFIG).keys() == {"divergence"}


def test_evidence_is_kept_by_agent_and_work_and_must_be_complete(tmp_path: Path) -> None:
    run = str(tmp_path)
    for agent in AGENTS[1:]:
        keep(run, Evidence(agent=agent, step="Optimization", work="some_work", measured={"x": 1}))
    assert {each.agent for each in kept(run)} == set(AGENTS[1:])
    with pytest.raises(ArtifactError, match="ModelBaking"):
        require_complete(kept(run))
    storage.write_bytes(storage.join(run, FOLDER, "evidence", "x-y.json"), b'{"agent": 3}')
    with pytest.raises(ArtifactError, match="no evidence of this version"):
        kept(run)
