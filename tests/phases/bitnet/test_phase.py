"""Phase 4 on a tiny run: files, claims that can be measured again, what it hands on, and repeated calls."""

from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import torch

from phases import modeldir, rundir, storage
from phases.bitnet.config import BitNetConfig, CalibrationConfig, HeldOutConfig, QuantisationConfig, RecipeConfig
from phases.bitnet.onnx_file import write_onnx
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.packed import pack
from phases.bitnet.phase import ARCHIVE, FOLDER, ONNX, PERFORMANCE, STATISTICS, Job, finish, jobs, train
from phases.bitnet.titan import to_bitnet
from phases.cognate.loading import load_model, model_config
from phases.cognate.titan import TinyTitan
from phases.contract import ModelRef, Probe
from phases.corpus.config import CorpusConfig
from phases.corpus.prepare import prepare
from phases.errors import ArtifactError
from phases.probes import RunFiles, measure
from phases.quietstar.config import ThoughtConfig
from phases.quietstar.loading import load_thinker, save_thinking
from phases.quietstar.thinker import Thinker
from phases.training.config import TrainingConfig
from support.titans import small, with_cache_in_floats

pytestmark = pytest.mark.slow
CONFIG = BitNetConfig(
    quantisation=QuantisationConfig(calibrated=True),
    calibration=CalibrationConfig(samples=100, seq_len=40, batch_size=50),
    recipe=RecipeConfig(  # without distillation: the parent's weights are random
        training=TrainingConfig(steps=80, batch_size=4, seq_len=48, learning_rate=1e-2), distillation=0.0
    ),
    learning_rates=(1e-2,),
    control_learning_rates=(1e-2,),
    held_out=HeldOutConfig(tokens=400, streams=4),
    force_timing=True,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a run with a corpus of counting rhymes and nothing else."""
    folder = tmp_path_factory.mktemp("run")
    source = folder / "texts"
    source.mkdir()
    for number in range(120):
        words = " ".join(f"{word} {number}" for word in ("one", "two", "three", "four", "five", "six") * 4)
        (source / f"{number}.txt").write_text(f"{words}\n")
    config = CorpusConfig(source=str(source), vocab_size=300)
    prepare(config, seed=0, folder=folder / rundir.CORPUS, progress=lambda *_: None)
    return str(folder)


@pytest.fixture(scope="module")
def parent(run: str) -> ModelRef:
    """Return a parent with random weights."""
    return saved(small(), run, "parent")


def saved(model: TinyTitan, run: str, path: str) -> ModelRef:
    """Write `model` to `path` in the run."""
    tokenizer = storage.read_bytes(storage.join(run, rundir.CORPUS, "tokenizer.json")).decode()
    lineage = modeldir.Lineage(phase="cognate", seed=0)
    out, config = storage.join(run, path), model_config(model.config)
    ref = modeldir.save_model(out, tensors=model.state_dict(), config=config, tokenizer=tokenizer, lineage=lineage)
    return ref.model_copy(update={"uri": path})


def do(run: str, parent: ModelRef) -> None:
    for job in jobs(parent, CONFIG):
        train(job, run, CONFIG, 1, state=None, save=lambda state: None, on_step=lambda report: None)


def test_finish_names_the_job_that_is_missing(run: str, parent: ModelRef) -> None:
    with pytest.raises(ArtifactError, match="has not been run"):
        finish(RunFiles(run), parent, CONFIG, 1, datetime.now(UTC))


def test_phase_hands_on_what_the_file_holds(run: str, parent: ModelRef) -> None:
    do(run, parent)
    files = RunFiles(run)
    result = finish(files, parent, CONFIG, 1, datetime.now(UTC))
    assert [storage.exists(files.path(f"{FOLDER}/{name}")) for name in (ONNX, ARCHIVE, STATISTICS)] == [True] * 3
    for made in result.claims:
        assert measure(RunFiles(run), made.probe).value == pytest.approx(made.value, abs=made.tolerance + 1e-12)
    sizes = ("original_size_mb", "compressed_size_mb", "compression_ratio", "memory_reduction", "memory/peak_mb")
    others = ("accuracy_retention", "inference_speedup", "speed/decode_p50_ms", "speed/prefill_tokens_per_second")
    assert all(result.metrics[f"bitnet/{name}"] > 0 for name in sizes + others)
    assert result.degraded == ()
    assert (result.success, result.metrics["bitnet/ready_for_training"]) == (True, 1.0)
    assert (result.notes, "thinking" in result.models) == ((), False)
    assert result.model is not None
    handed = load_model(files.path(result.model.uri), result.model.sha256).model
    assert torch.equal(handed.blocks[0].qkv.weight.unique().sign().unique(), torch.tensor([-1.0, 0.0, 1.0]))
    latent = load_model(files.path(result.models["latent"].uri)).model
    assert len(latent.blocks[0].qkv.weight.unique()) > 1000


def test_what_is_handed_on_stays_the_same_when_quantised_again(run: str, parent: ModelRef, tmp_path: Path) -> None:
    do(run, parent)
    result = finish(RunFiles(run), parent, CONFIG, 1, datetime.now(UTC))
    assert result.model is not None
    handed = load_model(storage.join(run, result.model.uri)).model
    again = to_bitnet(handed, CONFIG.quantisation.model_copy(update={"calibrated": False})).quantised()
    for name, matrix in again.items():
        assert torch.equal(matrix.dequantise(), handed.state_dict()[name]), name
    ids = [20, 30, 40]
    model = to_bitnet(handed, QuantisationConfig()).eval()
    write_onnx(pack(model), tmp_path / ONNX)
    assert (tmp_path / ONNX).read_bytes() == (Path(run) / FOLDER / ONNX).read_bytes()
    stream = OnnxModel(with_cache_in_floats(pack(model), tmp_path)).stream()  # one in int8 is less exact
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0][0]
    torch.testing.assert_close(torch.from_numpy(stream.read(ids).logits), logits, rtol=1e-3, atol=1e-3)


def test_on_a_busy_machine_times_are_left_out_and_named_or_forced_and_marked(
    run: str, parent: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(run, parent)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 100.0)
    alone = CONFIG.model_copy(update={"force_timing": False})
    result = finish(RunFiles(run), parent, alone, 1, datetime.now(UTC))
    assert [missing.partition(":")[0] for missing in result.degraded] == ["speed", "turns"]
    assert "bitnet.force_timing" in result.degraded[0]
    assert not any("speed" in key for key in [*result.metrics, *(made.key for made in result.claims)])
    assert result.metrics["bitnet/memory/peak_over_file"] > 0
    with pytest.raises(ArtifactError, match="nothing was timed"):
        measure(RunFiles(run), Probe(name="bitnet/speedup", arguments={"file": PERFORMANCE}))
    forced = finish(RunFiles(run), parent, CONFIG, 1, datetime.now(UTC))
    (speed,) = [made for made in forced.claims if made.key == "bitnet/speed/inference_speedup"]
    assert speed.baseline is not None
    assert speed.baseline.what == "the same weights in fp32, forced on a busy machine"
    assert (forced.metrics["bitnet/speed/forced"], forced.degraded) == (1.0, ())
    assert forced.success == result.success


def test_a_model_without_a_layer_is_not_ready_for_training(run: str, parent: ModelRef) -> None:
    do(run, parent)
    config = CONFIG.model_copy(update={"learning_rates": (2e-2,)})
    dead = small()
    torch.nn.init.zeros_(dead.blocks[0].qkv.weight)
    saved(dead, run, Job(parent, "ternary", 2e-2).path)
    result = finish(RunFiles(run), parent, config, 1, datetime.now(UTC))
    assert (result.success, result.metrics["bitnet/ready_for_training"]) == (False, 0.0)
    assert "dead rows" in str(result.error)


def test_a_finished_job_is_not_run_again(run: str, parent: ModelRef) -> None:
    do(run, parent)
    steps = list[object]()
    for job in jobs(parent, CONFIG):
        train(job, run, CONFIG, 1, state=None, save=lambda state: None, on_step=steps.append)
    assert steps == []


def test_a_parent_that_thinks_goes_on_thinking_and_no_exported_file_does(run: str, parent: ModelRef) -> None:
    uri = storage.join(run, "thinking_parent")
    modeldir.copy_model(storage.join(run, parent.uri), uri)
    thinker = Thinker(load_model(uri).model, ThoughtConfig(parallel=1, length=3, lookahead=2))
    torch.nn.init.normal_(thinker.mixing.layers[-1].weight)
    lineage = modeldir.Lineage(phase="quietstar", seed=0)
    tokenizer = modeldir.load_tokenizer_json(uri)
    save_thinking(uri, thinker, tokenizer=tokenizer, lineage=lineage, entropy_threshold=1.0, helps=True)
    thoughtful = parent.model_copy(update={"uri": "thinking_parent"})
    do(run, thoughtful)
    result = finish(RunFiles(run), thoughtful, CONFIG, 1, datetime.now(UTC))
    assert result.models["thinking"].uri == f"{FOLDER}/model/thinking"
    assert result.notes == (f"{ONNX} and {ARCHIVE} hold the model without its thoughts; {FOLDER}/model thinks.",)
    handed = load_thinker(storage.join(run, f"{FOLDER}/model")).thinker
    assert torch.equal(handed.mixing.layers[-1].weight, thinker.mixing.layers[-1].weight)
    assert handed.model.blocks[0].qkv.weight[0].unique().numel() == 3
    (gain,) = [made for made in result.claims if made.key == "bitnet/thinking_gain"]
    assert gain.baseline is not None
    assert measure(RunFiles(run), gain.probe).value == pytest.approx(gain.value, abs=gain.tolerance)
