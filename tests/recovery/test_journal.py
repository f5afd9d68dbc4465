"""The journal keeps order and names every entry that was tampered with."""

import json
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases import storage
from phases.errors import ArtifactError
from recovery.journal import Journal

values = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), values), max_size=6))
def test_what_is_appended_is_read(events: list[tuple[str, dict[str, object]]]) -> None:
    run = f"memory://{uuid.uuid4().hex}"
    journal = Journal(run)
    for kind, data in events:
        journal.append(kind, data=data)
    read = list(Journal(run).read())
    assert [(event.kind, event.data["data"]) for event in read] == events
    assert [event.number for event in read] == list(range(1, len(events) + 1))
    assert [event.kind for event in Journal(run).read("a")] == [kind for kind, _ in events if kind == "a"]


def test_two_writers_share_one_journal(tmp_path: Path) -> None:
    first, second = Journal(str(tmp_path)), Journal(str(tmp_path))
    for number in range(3):
        first.append("first", n=number)
        second.append("second", n=number)
    assert [event.kind for event in Journal(str(tmp_path)).read()] == ["first", "second"] * 3


def written(tmp_path: Path) -> Path:
    journal = Journal(str(tmp_path))
    for number in range(3):
        journal.append("step", n=number)
    return tmp_path / "journal" / "00000002.json"


def test_an_altered_event_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace('"n": 1', '"n": 7'))
    with pytest.raises(ArtifactError, match=r"00000002\.json: altered"):
        list(Journal(str(tmp_path)).read())


def test_a_rewritten_event_breaks_the_chain(tmp_path: Path) -> None:
    path = written(tmp_path)
    other = Journal(str(tmp_path / "other"))
    for number in (5, 6):
        other.append("step", n=number)
    storage.write_bytes(str(path), (tmp_path / "other" / "journal" / "00000002.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"00000002\.json: altered"):
        list(Journal(str(tmp_path)).read())


def test_missing_and_torn_events_are_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_text()
    path.write_text(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=r"00000002\.json: not valid JSON"):
        list(Journal(str(tmp_path)).read())
    path.unlink()
    with pytest.raises(ArtifactError, match=r"00000002\.json: missing"):
        list(Journal(str(tmp_path)).read())


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(ArtifactError, match="newer version"):
        list(Journal(str(tmp_path)).read())
