"""The journal keeps order, goes on behind a damaged end, and names what was tampered with."""

import json
import shutil
import threading
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phases import storage
from phases.errors import ArtifactError
from recovery.commits import FencedError
from recovery.journal import LOSS, VERSION, Event, Journal, NewerVersionError, _checksum

values = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3)


@given(st.lists(st.lists(st.tuples(st.sampled_from(["a", "b"]), values), max_size=3), max_size=4))
def test_what_is_appended_is_read(batches: list[list[tuple[str, dict[str, object]]]]) -> None:
    run = f"memory://{uuid.uuid4().hex}"
    journal = Journal(run)
    for batch in batches:
        written = journal.append_many([(kind, {"data": data}) for kind, data in batch])
        assert [(event.kind, event.data["data"]) for event in written] == batch
    events = [event for batch in batches for event in batch]
    read = Journal(run).read()
    assert [(event.kind, event.data["data"]) for event in read] == events
    assert [event.number for event in read] == list(range(1, len(events) + 1))
    assert [event.kind for event in Journal(run).read("a")] == [kind for kind, _ in events if kind == "a"]
    assert len(storage.names(storage.join(run, "journal"))) == len([batch for batch in batches if batch])


def kinds(run: Path | str) -> list[str]:
    return [event.kind for event in Journal(str(run)).read()]


def test_two_writers_share_one_journal(tmp_path: Path) -> None:
    first, second = Journal(str(tmp_path)), Journal(str(tmp_path), epoch=0)
    for number in range(3):
        first.append("first", n=number)
        second.append("second", n=number)
    assert kinds(tmp_path) == ["first", "second"] * 3


def test_keys_that_json_turns_into_text_do_not_count_as_altered(tmp_path: Path) -> None:
    Journal(str(tmp_path)).append("a", of={10: "x", 9: ("y", None)})
    assert Journal(str(tmp_path)).read()[0].data == {"of": {"10": "x", "9": ["y", None]}}


def test_what_is_noted_together_is_one_object_before_what_comes_later(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    for number in range(50):
        journal.note("noted", n=number)
    journal.append("last")
    assert kinds(tmp_path) == ["noted"] * 50 + ["last"]
    assert len(list((tmp_path / "journal").iterdir())) <= 3  # were it slow, a group or two more
    journal.flush()
    assert len(kinds(tmp_path)) == 51


def test_what_is_noted_is_written_soon_without_being_asked(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.note("a")
    deadline = time.monotonic() + 30
    while not kinds(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert threading.active_count() < 50


def test_a_note_that_cannot_be_written_is_kept_and_its_failure_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(str(tmp_path))

    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "disk full")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", full)
        journal.note("first")
        deadline = time.monotonic() + 30
        while journal._failure is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(OSError, match="disk full"):
            journal.note("told")
        with pytest.raises(OSError, match="disk full"):
            journal.append("second")
    journal.append("third")
    assert kinds(tmp_path) == ["first", "third"]


def test_a_writer_of_an_older_epoch_is_fenced(tmp_path: Path) -> None:
    old, beside = Journal(str(tmp_path), epoch=1), Journal(str(tmp_path))
    old.append("a")
    new = Journal(str(tmp_path), epoch=2)
    new.append("b")
    for _ in range(2):
        with pytest.raises(FencedError, match=r"taken over this run \(epoch 2, this one's was 1\)"):
            old.append("late")
    old.note("late")
    with pytest.raises(FencedError):
        old.flush()
    assert beside.append("c").number == 3  # goes along with whoever has the run
    with pytest.raises(FencedError):
        Journal(str(tmp_path), epoch=1).append("late")
    new.append("d")
    assert kinds(tmp_path) == ["a", "b", "c", "d"]
    assert Journal(str(tmp_path)).newest_epoch() == 2


def written(tmp_path: Path, count: int = 3) -> Path:
    journal = Journal(str(tmp_path))
    for number in range(count):
        journal.append("step", n=number)
    return tmp_path / "journal" / "00000002.json"


def test_an_altered_event_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace('"n": 1', '"n": 7'))
    with pytest.raises(ArtifactError, match=r"00000002\.json: altered.*no crash.*go on from event 1"):
        Journal(str(tmp_path)).read()
    with pytest.raises(ArtifactError, match="altered"):
        Journal(str(tmp_path)).recover()
    assert len(storage.names(str(path.parent))) == 3
    events, damage = Journal(str(tmp_path)).scan()
    assert [event.number for event in events] == [1]
    assert damage is not None
    assert damage.tampered


def test_a_rewritten_event_breaks_the_chain(tmp_path: Path) -> None:
    path = written(tmp_path, count=2)
    other = Journal(str(tmp_path / "other"))
    for number in (5, 6):
        other.append("step", n=number)
    storage.write_bytes(str(path), (tmp_path / "other" / "journal" / "00000002.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"00000002\.json: altered"):
        Journal(str(tmp_path)).read()


def test_missing_and_torn_events_before_whole_ones_are_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_text()
    path.write_text(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=r"00000002\.json: not valid JSON"):
        Journal(str(tmp_path)).read()
    path.unlink()
    with pytest.raises(ArtifactError, match=r"00000002\.json: missing"):
        Journal(str(tmp_path)).read()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("template")
    journal = Journal(str(run), epoch=1)
    journal.append("a")
    journal.append_many([("b", {"x": 1}), ("b", {"x": 2})])
    journal.append("c", text="long enough to be cut anywhere")
    return run


@settings(max_examples=60, deadline=None)
@given(data=st.data(), objects=st.integers(1, 3), how=st.sampled_from(["flip", "cut", "empty", "noise"]))
def test_a_damaged_end_is_set_aside_and_told_and_work_goes_on(
    template: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, objects: int, how: str
) -> None:
    run = shutil.copytree(template, tmp_path_factory.mktemp("run") / "run")
    files = sorted((run / "journal").iterdir())
    for file in files[-objects:]:
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if how == "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        damaged = {"flip": bytes(content), "cut": bytes(content[:place]), "empty": b"", "noise": b"\xff\x00{"}[how]
        if damaged.startswith(b'{"version"') and b'"version": 2,' not in damaged:
            damaged = b""  # a flipped version is refused as a newer one, and nothing is touched
        file.write_bytes(damaged)
    left = [1, 2, 2, 4][: {1: 3, 2: 1, 3: 0}[objects]]
    assert len(kinds(run)) == len(left)
    aside = Journal(str(run), epoch=2).recover()
    assert len(aside) == objects
    *before, loss = Journal(str(run)).read()
    assert len(before) == len(left)
    assert (loss.kind, loss.number, loss.data["lost_from"]) == (LOSS, len(left) + 1, len(left) + 1)
    assert loss.data["files"] == aside
    assert all((run / "journal" / name).exists() for name in aside)
    assert Journal(str(run), epoch=2).recover() == []
    assert Journal(str(run), epoch=2).append("goes on").number == len(left) + 2
    with pytest.raises(FencedError):
        Journal(str(run), epoch=1).append("late")


def test_the_same_place_may_be_damaged_again(tmp_path: Path) -> None:
    Journal(str(tmp_path)).append("a")
    for count in (1, 2):
        (tmp_path / "journal" / "00000001.json").write_bytes(b"")
        aside = Journal(str(tmp_path)).recover()  # told anew, since the event that told of the first is lost
        assert aside == [f"00000001.json.damaged-{number + 1}" for number in range(count)]
    assert kinds(tmp_path) == [LOSS]


def test_an_old_journal_is_read_and_goes_on(tmp_path: Path) -> None:
    before = ""
    for number, kind in enumerate(["a", "b"], start=1):
        body = {"version": 1, "before": before, "number": number, "kind": kind, "time": "t", "data": {"n": number}}
        before = _checksum(body)
        storage.write_json(str(tmp_path / "journal" / f"{number:08d}.json"), body | {"checksum": before})
    Journal(str(tmp_path), epoch=3).append("c")
    assert Journal(str(tmp_path)).read()[:2] == [Event(1, "a", "t", {"n": 1}), Event(2, "b", "t", {"n": 2})]
    assert kinds(tmp_path) == ["a", "b", "c"]
    altered = tmp_path / "journal" / "00000001.json"
    altered.write_text(altered.read_text().replace('"n": 1', '"n": 5'))
    with pytest.raises(ArtifactError, match=r"00000001\.json: altered"):
        kinds(tmp_path)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path, place: int) -> None:
    path = written(tmp_path).with_name(f"{place:08d}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": VERSION + 1}))
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    for act in (Journal(str(tmp_path)).read, Journal(str(tmp_path)).recover):
        with pytest.raises(NewerVersionError, match="newer version of Agent Forge; update"):
            act()
    if place == 3:
        with pytest.raises(NewerVersionError):
            Journal(str(tmp_path)).append("x")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
