"""Logs of every released version are read for ever, and tell what they told on the day they were written."""

import shutil
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from eventlog.audit import verify
from eventlog.index import Index
from eventlog.log import EventLog
from eventlog.segments import read_log
from tests.eventlog.disks import NoReserve
from tests.golden.write import told

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if (path / "events").is_dir())


def missing(expected: object, found: object, where: str = "") -> list[str]:
    """Every place where `found` does not hold what `expected` does; what is new in `found` does not count."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [fault for key in expected for fault in missing(expected[key], found.get(key), f"{where}/{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [fault for number, (one, other) in pairs for fault in missing(one, other, f"{where}/{number}")]
    return [] if expected == found else [f"{where}: {expected!r} became {found!r}"]


def test_there_is_a_golden_log() -> None:
    assert "0.1.0" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_released_log_tells_what_it_always_told(version: str) -> None:
    expected = msgspec.json.decode((GOLDEN / version / "dump.json").read_bytes())
    assert missing(expected, told(GOLDEN / version / "events")) == []
    found = verify(GOLDEN / version / "events")
    assert found.fault is None and found.unfinished_bytes == 0 and found.head_hash == expected["head"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_released_log_is_opened_and_indexed(version: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / version / "events", tmp_path / "events")
    expected = msgspec.json.decode((GOLDEN / version / "dump.json").read_bytes())
    log = EventLog(tmp_path / "events", software="9.9.9", disk=NoReserve())
    log.lock()
    with closing(log), closing(Index.open(tmp_path / "index.sqlite")) as index:
        assert log.recover(None, index.fold).torn_bytes == 0
        (count,) = index._db.execute("SELECT count(*) FROM job").fetchone()
        assert count == len(expected["jobs"]) and index.spending.reserved == expected["reserved"]


def test_the_golden_log_of_the_first_version_holds_every_kind_of_its_facts() -> None:
    kinds = {type(event).__name__ for one in read_log(GOLDEN / "0.1.0" / "events", None) for event in one.commit.events}
    jobs = "Requested Started Completed Failed CancelRequested Cancelled Interrupted"
    others = "LogCreated DaemonStarted DaemonStopped RequestReceived AttemptStarted AttemptFailed ReplyReceived"
    assert kinds == {f"Job{name}" for name in jobs.split()} | set(others.split())
