"""The segment log: one writer at a time, damage is named, and compaction opens no door for a stale writer."""

import uuid
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from phases import storage
from phases.errors import ArtifactError
from recovery.commits import FencedError
from recovery.segments import Flags, SegmentLog

TAKEOVER = Flags.SNAPSHOT | Flags.TAKEOVER


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "log") if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def filled(uri: str) -> SegmentLog:
    log = SegmentLog(uri)
    assert log.load() == []
    for payload in (b"a", b"b", b"c"):
        log.append(payload)
    return log


def test_segments_come_back_in_order(uri: str) -> None:
    filled(uri)
    again = SegmentLog(uri)
    assert again.load() == [b"a", b"b", b"c"]
    assert again.append(b"d") == 4


def test_of_two_writers_at_one_place_one_is_fenced(uri: str) -> None:
    first, second = filled(uri), SegmentLog(uri)
    second.load()
    second.append(b"d")
    with pytest.raises(FencedError, match="taken over"):
        first.append(b"e")
    assert SegmentLog(uri).load() == [b"a", b"b", b"c", b"d"]


def test_a_snapshot_makes_what_was_before_it_superfluous(uri: str) -> None:
    log = filled(uri)
    log.append(b"all", Flags.SNAPSHOT)
    log.append(b"d")
    assert SegmentLog(uri).load() == [b"all", b"d"]
    log.compact()
    assert log.numbers() == [4, 5]
    assert SegmentLog(uri).load() == [b"all", b"d"]


def test_a_writer_that_slept_through_compaction_is_still_fenced(uri: str) -> None:
    stale = filled(uri)
    for _ in range(2):
        successor = SegmentLog(uri)
        successor.load()
        successor.append(b"taken over", TAKEOVER)
        successor.append(b"x")
    successor.append(b"all", Flags.SNAPSHOT)
    successor.compact()
    assert successor.numbers() == [4, 6, 8]
    with pytest.raises(FencedError):
        stale.append(b"late")
    assert SegmentLog(uri).load() == [b"all"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "swap"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    filled(str(tmp_path))
    file = tmp_path / f"{2:010d}"
    data = file.read_bytes()
    changed = {
        "flip": data[:-1] + b"B",
        "truncate": data[:-1],
        "empty": b"",
        "swap": (tmp_path / f"{1:010d}").read_bytes(),
    }
    file.write_bytes(changed[damage])
    with pytest.raises(ArtifactError, match=f"{2:010d}: .*torn"):
        SegmentLog(str(tmp_path)).load()


def test_what_is_missing_or_newer_is_named(tmp_path: Path) -> None:
    filled(str(tmp_path))
    file = tmp_path / f"{2:010d}"
    data = bytearray(file.read_bytes())
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{2:010d}: no such file"):
        SegmentLog(str(tmp_path)).load()
    data[4] = 99
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="newer version"):
        SegmentLog(str(tmp_path)).load()


def test_a_replaced_segment_breaks_the_chain(tmp_path: Path) -> None:
    filled(str(tmp_path / "one"))
    other = SegmentLog(str(tmp_path / "two"))
    other.load()
    other.append(b"not a")
    storage.write_bytes(str(tmp_path / "one" / f"{1:010d}"), (tmp_path / "two" / f"{1:010d}").read_bytes())
    with pytest.raises(ArtifactError, match="not the one that the next"):
        SegmentLog(str(tmp_path / "one")).load()


class LogMachine(RuleBasedStateMachine):
    """Writers come and go; whoever was told that its record is in finds it there for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.uri = f"memory://{uuid.uuid4().hex}"
        self.writers: list[tuple[SegmentLog, list[bytes]]] = []
        self.kept: list[bytes] = []  # what the last winner holds; a snapshot is all of it joined
        self.count = 0

    @rule()
    def open(self) -> None:
        log = SegmentLog(self.uri)
        content = self.contents(log)
        log.append(b"|".join(content), TAKEOVER)
        self.writers.append((log, content))

    @rule(data=st.data(), snapshot=st.booleans(), compact=st.booleans())
    def write(self, data: st.DataObject, snapshot: bool, compact: bool) -> None:
        if not self.writers:
            return
        place = data.draw(st.integers(0, len(self.writers) - 1))
        log, content = self.writers[place]
        self.count += 1
        record = b"%d" % self.count
        try:
            if snapshot:
                log.append(b"|".join([*content, record]), Flags.SNAPSHOT)
            else:
                log.append(record)
        except FencedError:
            assert place < len(self.writers) - 1
            return
        assert place == len(self.writers) - 1
        content.append(record)
        self.kept = list(content)
        if compact:
            log.compact()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.contents(SegmentLog(self.uri)) == self.kept

    def contents(self, log: SegmentLog) -> list[bytes]:
        payloads = log.load()
        if log.snapshot:
            return [part for part in payloads[0].split(b"|") if part] + payloads[1:]
        return payloads


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = hypothesis_settings(max_examples=40, stateful_step_count=25, deadline=None)
