"""Configuration: presets are valid, overrides have the last word, and mistakes are named before anything starts."""

from pathlib import Path

import pytest
import yaml

from coordinators.config import dump_config, load_config, parse_config, preset_names
from phases.errors import ConfigError


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid_and_survives_yaml(preset: str) -> None:
    config = load_config(preset)
    assert config.name == preset
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_overrides_have_the_last_word(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\ncognate: {training: {steps: 7}}\n")
    config = load_config("smoke", file, ["cognate.training.steps=9"])
    assert config.seed == 3
    assert config.cognate.training.steps == 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cognate.model.n_headz=4", "did you mean n_heads"),
        ("cognate.size=huge", "cognate.size"),
        ("seed=-1", "seed = -1"),
        ("corpus.source=/no/such/file", "/no/such/file"),
        ("phases=[cognate, cognate]", "each once"),
        ("cognate.variants=[]", "cognate.variants"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("smoke", None, [override])


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "torn.yaml").write_text("a: [1,\n")
    for name in ("list.yaml", "torn.yaml", "missing.yaml"):
        with pytest.raises(ConfigError, match=name):
            load_config("smoke", tmp_path / name)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text(f"seed: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config("smoke", file)
    assert not (tmp_path / "ran").exists()
