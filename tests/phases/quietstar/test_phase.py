"""The phase on a tiny run: what it writes, its claims measured again, kills, the curriculum."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from phases import modeldir, storage
from phases.cognate.loading import load_model, model_config
from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.contract import Baseline, Claim, Probe
from phases.corpus.config import CorpusConfig
from phases.corpus.prepare import prepare
from phases.errors import ConfigError
from phases.probes import RunFiles, measure
from phases.quietstar import phase
from phases.quietstar.claims import notes_of
from phases.quietstar.config import QuietStarConfig
from phases.quietstar.loading import can_think, load_thinker
from phases.training.state import TrainState

PARENT = "02_evomerge/model"
CONFIG = QuietStarConfig.model_validate(
    {
        "thought": {"parallel": 2, "length": 4, "lookahead": 2},
        "training": {"steps": 4, "batch_size": 2, "seq_len": 24, "checkpoint_every": 2, "warmup_steps": 0},
        "evaluation": {"rows": 4, "resamples": 100, "examples": 3},
    }
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run with a corpus and a model of the phase before."""
    monkeypatch.setattr("phases.probes.MODULES", ("phases.quietstar.probes",))
    text = tmp_path / "text"
    text.mkdir()
    for number in range(40):
        lines = "\n".join(f"    item_{number}_{line} = load({line * number})" for line in range(12))
        (text / f"{number}.py").write_text(f"def function_{number}(path):\n{lines}\n")
    uri = str(tmp_path / "run")
    settings, folder = CorpusConfig(source=str(text), vocab_size=300), Path(uri) / "00_corpus"
    corpus = prepare(settings, seed=0, folder=folder, progress=lambda *_: None)
    values = {"vocab_size": corpus.vocab_size, "d_model": 24, "n_layers": 2, "n_heads": 2, "hidden": 32, "tied": True}
    config = TitanConfig.model_validate(values | {"segment_len": 16, "memory": MemoryConfig(hidden=16)})
    torch.manual_seed(0)
    modeldir.save_model(
        storage.join(uri, PARENT),
        tensors=TinyTitan(config).state_dict(),
        config=model_config(config),
        tokenizer=corpus.tokenizer.to_str(),
        lineage=modeldir.Lineage(phase="evomerge", seed=0),
    )
    return uri


def train_all(
    run: str, config: QuietStarConfig, state: TrainState | None = None, save: Callable[[TrainState], None] | None = None
) -> list[str]:
    jobs = [*phase.jobs(config, PARENT), phase.control_job(config, PARENT)]
    refs = [
        phase.train_stage(
            job, run, config, 7, state=state, save=save or (lambda state: None), on_step=lambda report: None
        )
        for job in jobs
    ]
    return [ref.sha256 for ref in refs]


def test_the_phase_and_its_claims(run: str) -> None:
    train_all(run, CONFIG)
    result = phase.finish(RunFiles(run), CONFIG, 7, datetime.now(UTC), PARENT)
    documented = {"thought_length", "num_thoughts", "coherence_threshold", "training_steps", "final_entropy"}
    assert documented | {"mixing_weight_alpha", "ready_for_compression"} <= set(result.metrics)
    assert result.metrics["training_steps"] == 4
    assert result.model is not None
    assert result.model.uri == phase.MODEL
    assert 0 < result.metrics["mixing_weight_alpha"] < 1
    table = storage.read_json(storage.join(run, phase.EXAMPLES))
    assert len(table) == 3
    assert {"text", "thought", "next", "probability_with", "probability_without", "weight"} <= set(table[0])
    assert set(result.models) == {"control", "thinking"}
    assert not can_think(storage.join(run, result.models["control"].uri))
    assert (
        modeldir.open_ref(storage.join(run, result.models["thinking"].uri)).sha256 == result.models["thinking"].sha256
    )
    lineage = modeldir.load_lineage(storage.join(run, phase.MODEL))
    assert lineage.parents == {"parent": modeldir.open_ref(storage.join(run, PARENT)).sha256}
    values = {made.key: made.value for made in result.claims}
    without, within = values["quietstar/bits_per_byte_without_thoughts"], values["quietstar/bits_per_byte"]
    assert values["quietstar/text_gain"] == pytest.approx(without - within)
    assert result.metrics["quietstar/text_gain_low"] <= values["quietstar/text_gain"]
    assert values["quietstar/text_gain"] <= result.metrics["quietstar/text_gain_high"]
    made_of = {made.key: made.baseline for made in result.claims if made.baseline}
    assert made_of["quietstar/bits_per_byte"].what == "as many further steps without thoughts"
    assert made_of["quietstar/text_gain"].what == "random tokens as thoughts"
    again = RunFiles(run)
    for made in result.claims:
        found = measure(again, made.probe).value
        assert abs(found - made.value) <= made.tolerance, made.key


def test_a_killed_stage_ends_with_the_same_bytes(run: str, tmp_path: Path) -> None:
    kept = list[TrainState]()
    whole = train_all(run, CONFIG, save=kept.append)
    first = load_thinker(storage.join(run, phase.MODEL), "cpu").thinker.state_dict()
    for path, state in zip((phase.MODEL, phase.CONTROL), kept, strict=True):
        (tmp_path / "run" / path).rename(tmp_path / path.replace("/", "_"))
        torch.manual_seed(999)
        train_all(run, CONFIG, state=TrainState.from_files(state.to_files()))
    resumed = train_all(run, CONFIG)
    again = load_thinker(storage.join(run, phase.MODEL), "cpu").thinker.state_dict()
    assert whole == resumed
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_curriculum_ends_with_a_model_that_does_not_think(run: str) -> None:
    stages = [{"length": n, "steps": 2, "learning_rate": 1e-3} for n in (4, 2, 0)]
    config = QuietStarConfig.model_validate(CONFIG.model_dump() | {"curriculum": stages})
    assert [job.out for job in phase.jobs(config, PARENT)] == [
        "03_quietstar/stages/0",
        phase.MODEL,
        "03_quietstar/thought_free/2",
    ]
    train_all(run, config)
    assert load_thinker(storage.join(run, phase.MODEL), "cpu").thinker.config.length == 2
    result = phase.finish(RunFiles(run), config, 7, datetime.now(UTC), PARENT)
    free = storage.join(run, result.models["thought_free"].uri)
    assert not can_think(free)
    load_model(free)
    assert result.metrics["training_steps"] == 6


def test_a_curriculum_of_growing_thoughts_is_refused() -> None:
    stages = [{"length": n, "steps": 2, "learning_rate": 1e-3} for n in (2, 4)]
    with pytest.raises(ConfigError, match="shrinking thoughts"):
        QuietStarConfig.model_validate({"curriculum": stages})


@pytest.mark.parametrize(
    ("gain", "control", "helps", "said"),
    [
        ((0.02, 0.01, 0.03), 2.5, True, ["Thoughts help"]),
        ((0.02, -0.01, 0.05), 2.5, False, ["do not help", "`--think auto` does not think"]),
        ((0.02, 0.01, 0.03), 2.3, True, ["Thoughts help", "No gain over training without thoughts"]),
        ((0.0002, 0.0001, 0.0003), 2.5, True, ["do not help"]),
        ((-0.02, 0.01, 0.03), 2.5, True, ["Thoughts help", "What they say does not matter"]),
    ],
)
def test_the_verdict_says_whether_it_was_worth_it(
    gain: tuple[float, float, float], control: float, helps: bool, said: list[str]
) -> None:
    def claim(key: str, value: float, baseline: float) -> Claim:
        against = Baseline(what="as many further steps", value=baseline)
        return Claim(
            key=key, value=value, unit="", better="lower", tolerance=0, baseline=against, probe=Probe(name="p")
        )

    claims = [claim("quietstar/text_gain", gain[0], 0), claim("quietstar/bits_per_byte", 2.4, control)]
    notes = notes_of(claims, gain[1:], helps=helps)
    assert len(notes) == len(said)
    assert all(text in note for text, note in zip(said, notes, strict=True))
