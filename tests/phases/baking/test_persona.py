"""Personas that cannot be, and rates over observations made up to have known ones."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases.baking.persona import Observation, Persona, coherence, rates, read_persona
from phases.errors import ConfigError


def _seen(context: str, helpful: int, total: int) -> list[Observation]:
    yes = Observation(context, {"helpfulness": True, "creativity": True, "precision": False})
    return [yes] * helpful + [Observation(context, {"helpfulness": False})] * (total - helpful)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("helpfulness: 1.2", "persona.helpfulness = 1.2"),
        ("precision: 0.85", "is no tenth"),
        ("name: zorro", "persona.name"),
        ("never: [weather]", "persona.never"),
        ("kindness: 0.5", "persona.kindness"),
        ("[1, 2]", "persona"),
        ("{", "cannot be read"),
    ],
)
def test_a_persona_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "persona.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read_persona(file)


def test_a_persona_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "persona.yaml"
    file.write_text("{helpfulness: 0.3, name: juno, never: [gossip, weapons]}")
    assert read_persona(file) == Persona(helpfulness=0.3, name="juno", never=("gossip", "weapons"))


def test_rates_count_what_applies() -> None:
    found = rates(_seen("a", 3, 4))
    assert (found["helpfulness"].right, found["helpfulness"].total) == (3, 4)
    assert (found["creativity"].right, found["creativity"].total) == (3, 3)  # a refusal shows nothing else
    low, high = found["helpfulness"].interval
    assert low < 0.75 < high


def test_coherence_is_one_where_contexts_agree_and_falls_with_the_worst() -> None:
    assert coherence(_seen("a", 5, 10) + _seen("b", 5, 10)) == 1
    # Over all 10 of 20, in the contexts 9 and 1 of 10: one of three traits is 0.4 off.
    assert coherence(_seen("a", 9, 10) + _seen("b", 1, 10)) == pytest.approx(1 - 0.4 / 3)


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_interval_holds_the_rate(right: int, wrong: int) -> None:
    found = rates(_seen("a", right, right + wrong))["helpfulness"]
    low, high = found.interval
    assert low - 1e-9 <= found.value <= high + 1e-9 or found.total == 0
