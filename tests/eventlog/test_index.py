"""The index is a function of the log, however it got there, and may be thrown away at any time."""

import contextlib
import random
import sqlite3
import stat
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog import index as index_module
from eventlog.errors import IndexUnavailable
from eventlog.events import Commit
from eventlog.history import History, JobQuery
from eventlog.index import Index
from eventlog.jobs import Job
from eventlog.log import EventLog
from eventlog.segments import Located, Mark, MarkNotThere
from eventlog.spending import Spending
from eventlog.tables import VERSION
from eventlog.values import JobId, digest
from tests.eventlog.builders import (
    append,
    board_of,
    chunks,
    commit,
    commits_of,
    dump,
    job_id,
    one_job,
    opened,
    requested,
    said,
    written,
)
from tests.eventlog.disks import NoReserve


def placed(commits: Iterable[Commit]) -> list[Located]:
    """As if from a log: marks that nobody checks."""
    return [Located(one, Mark(one.position * 100, one.position, digest(b"%d" % one.position))) for one in commits]


def started(home: Path) -> tuple[EventLog, Index]:
    """What the daemon does first. Whoever calls closes both."""
    log = EventLog(home / "events", software="0.1.0", disk=NoReserve())
    log.lock()
    index = Index.open(home / "index.sqlite")
    try:
        with index.in_bulk():
            log.recover(index.mark, index.fold)
    except MarkNotThere:
        index.discard()
        index = Index.open(home / "index.sqlite")
        with index.in_bulk():
            log.recover(None, index.fold)
    return log, index


def all_jobs(path: Path) -> dict[JobId, Job]:
    with closing(History(path)) as history:
        return {job.id: job for job in history.jobs(JobQuery(limit=1000)).jobs}


def spent(commits: Iterable[Commit]) -> Spending:
    spending = Spending()
    for one in commits:
        spending.apply(one)
    return spending


def assert_true(path: Path, index: Index, commits: Sequence[Commit]) -> None:
    everything = board_of(commits)
    assert all_jobs(path) == everything
    assert {job.id: job for job in index.board} == {id: job for id, job in everything.items() if not job.state.is_over}
    assert index.spending == spent(commits)
    assert index.reached == commits[-1].position and not index.stale


@settings(max_examples=40, deadline=None)
@given(
    choices=st.lists(st.integers(0, 4095), min_size=1, max_size=40),
    sizes=st.lists(st.integers(1, 9), max_size=12),
    reopen=st.lists(st.booleans(), min_size=13, max_size=13),
    jobs_at_once=st.integers(1, 9),
)
def test_an_index_fed_in_any_pieces_and_reopened_anywhere_equals_one_made_from_nothing_in_bulk(
    choices: list[int], sizes: list[int], reopen: list[bool], jobs_at_once: int
) -> None:
    located = placed(commits_of(choices))
    with tempfile.TemporaryDirectory() as directory:
        piecewise, at_once = Path(directory) / "piecewise.sqlite", Path(directory) / "at once.sqlite"
        index = Index.open(piecewise)
        for piece, again in zip(chunks(located, sizes), reopen, strict=False):
            index.fold(piece)
            if again:
                index.close()
                index = Index.open(piecewise)
        with closing(index), closing(Index.open(at_once)) as rebuilt, pytest.MonkeyPatch.context() as patch:
            patch.setattr(index_module, "BULK_JOBS", jobs_at_once)
            with rebuilt.in_bulk():
                for piece in chunks(located, sizes):
                    rebuilt.fold(piece)
            assert dump(index) == dump(rebuilt)
            assert_true(piecewise, index, [one.commit for one in located])
            assert_true(at_once, rebuilt, [one.commit for one in located])


def test_the_daemon_catches_up_with_what_the_index_missed(tmp_path: Path) -> None:
    commits = commits_of(list(range(0, 4000, 61)))
    for end in (10, 30, len(commits)):
        log, index = started(tmp_path)
        with closing(log), closing(index):
            located = append(log, commits[log.head.position - 1 : end])
            if end != 30:  # then it dies between the sync and the fold
                index.fold(located)
    log, index = started(tmp_path)
    with closing(log), closing(index):
        assert_true(tmp_path / "index.sqlite", index, commits)


def damaged_ways() -> list[tuple[str, bytes | None]]:
    return [
        ("missing", None),
        ("empty", b""),
        ("garbage", b"not a database" * 1000),
        ("header only", b"SQLite format 3\0" + bytes(84)),
    ]


@pytest.mark.parametrize("damage", [way for _, way in damaged_ways()], ids=[name for name, _ in damaged_ways()])
def test_an_index_that_is_missing_or_damaged_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    commits = one_job()
    written(tmp_path / "events", [commits], NoReserve())
    path = tmp_path / "index.sqlite"
    log, index = started(tmp_path)
    log.close()
    before = dump(index)
    index.close()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    log, index = started(tmp_path)
    with closing(log), closing(index):
        assert dump(index) == before
        assert_true(path, index, commits)


def test_a_stale_write_ahead_log_beside_a_new_file_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    commits = one_job() + one_job(7, number=2)
    written(tmp_path / "events", [commits[:5]], NoReserve())
    log, index = started(tmp_path)
    index.checkpoint()
    index.fold(append(log, commits[5:]))
    wal = (tmp_path / "index.sqlite-wal").read_bytes()  # holds some pages of the file, not all
    log.close()
    index.close()
    path.write_bytes(b"garbage" * 1000)
    (tmp_path / "index.sqlite-wal").write_bytes(wal)
    (tmp_path / "index.sqlite-shm").write_bytes(b"garbage")
    log, index = started(tmp_path)
    with closing(log), closing(index):
        assert_true(path, index, commits)


@pytest.mark.parametrize("version", [VERSION + 1, VERSION + 1000, -1])
def test_an_index_of_another_version_is_made_anew(tmp_path: Path, version: int) -> None:
    written(tmp_path / "events", [one_job()], NoReserve())
    log, index = started(tmp_path)
    index._db.execute(f"PRAGMA user_version = {version}")
    index._db.execute("DELETE FROM job")
    log.close()
    index.close()
    log, index = started(tmp_path)
    with closing(log), closing(index):
        assert_true(tmp_path / "index.sqlite", index, one_job())


def test_an_index_ahead_of_or_beside_the_log_is_made_anew(tmp_path: Path) -> None:
    for number, other in enumerate((one_job()[:2], one_job(prompt="another"), commits_of([5, 77, 901]))):
        home = tmp_path / str(number)
        written(home / "first", [one_job()], NoReserve())
        written(home / "second", [other], NoReserve())
        (home / "first").rename(home / "events")
        log, index = started(home)
        log.close()
        index.close()
        (home / "events").rename(home / "gone")
        (home / "second").rename(home / "events")
        log, index = started(home)
        with closing(log), closing(index):
            assert_true(home / "index.sqlite", index, other)


def test_an_index_damaged_anywhere_never_keeps_the_daemon_from_starting(tmp_path: Path) -> None:
    commits = commits_of(list(range(0, 4000, 61)))
    written(tmp_path / "events", [commits], NoReserve())
    log, index = started(tmp_path)
    log.close()
    index.close()
    path = tmp_path / "index.sqlite"
    sound = path.read_bytes()
    chance = random.Random(7)
    for _ in range(60):
        data = bytearray(sound)
        start = chance.randrange(len(data))
        data[start : start + 64] = chance.randbytes(64)
        path.write_bytes(data)
        log, index = started(tmp_path)
        log.close()
        index.close()


def test_a_fold_that_fails_fails_nobody_and_the_views_still_follow(tmp_path: Path) -> None:
    commits = one_job() + one_job(7, number=2)
    written(tmp_path / "events", [commits], NoReserve())
    path = tmp_path / "index.sqlite"
    located = placed(commits)
    with closing(Index.open(path)) as index:
        index.fold(located[:3])
        index._db.execute("ALTER TABLE spending RENAME TO elsewhere")
        index.fold(located[3:5])
        assert index.stale and index.reached == 4
        index.fold(located[5:8])
        assert index.reached == 4
        expected = board_of(commits[:8])
        assert {job.id: job for job in index.board} == expected
        assert index.spending == spent(commits[:8])
    log, index = started(tmp_path)
    with closing(log), closing(index):
        assert_true(path, index, commits)


def test_an_index_that_a_crash_left_half_made_is_made_anew(tmp_path: Path) -> None:
    commits = [one for number in range(300) for one in one_job(2 + number * 5, number=number)]
    written(tmp_path / "events", chunks(commits, [7] * 50), NoReserve())
    path = tmp_path / "index.sqlite"
    killed = Index.open(path)
    with pytest.raises(KeyboardInterrupt), killed.in_bulk():
        killed.fold(placed(commits))
        killed._catch_up()
        raise KeyboardInterrupt
    assert killed.reached == commits[-1].position
    killed.close()
    log, index = started(tmp_path)
    with closing(log), closing(index):
        assert_true(path, index, commits)
    with closing(Index.open(path)) as again:
        assert again.reached == commits[-1].position


def test_an_index_that_cannot_be_written_while_it_is_made_is_gone_and_the_views_still_follow(tmp_path: Path) -> None:
    commits = one_job() + one_job(7, number=2)
    written(tmp_path / "events", [commits], NoReserve())
    path = tmp_path / "index.sqlite"
    with closing(Index.open(path)) as index:
        with index.in_bulk():
            index._db.execute("ALTER TABLE spending RENAME TO elsewhere")
            index.fold(placed(commits)[:5])
        assert index.stale and not path.exists()
        index.fold(placed(commits)[5:])
        assert {job.id: job for job in index.board} == board_of(commits)
    log, index = started(tmp_path)
    with closing(log), closing(index):
        assert_true(path, index, commits)


def test_an_index_that_somebody_held_locked_is_caught_up_with_the_next_commit(tmp_path: Path) -> None:
    commits = one_job() + one_job(7, number=2)
    path = tmp_path / "index.sqlite"
    located = placed(commits)
    with closing(Index.open(path)) as index, closing(sqlite3.connect(path, isolation_level=None)) as somebody:
        index.fold(located[:2])
        somebody.execute("BEGIN IMMEDIATE")
        index.fold(located[2:8])
        assert index.stale and index.reached == commits[1].position
        somebody.execute("ROLLBACK")
        index.fold(located[8:])
        assert not index.stale
        assert_true(path, index, commits)


def test_an_index_that_cannot_be_made_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IndexUnavailable, match="cannot be made"):
        Index.open(tmp_path / "file" / "index.sqlite")


def test_the_index_is_for_its_owner_only_and_bounds_its_write_ahead_log(tmp_path: Path) -> None:
    with closing(Index.open(tmp_path / "index.sqlite")) as index:
        index.fold(placed(one_job()))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert modes == {"index.sqlite": 0o600, "index.sqlite-wal": 0o600, "index.sqlite-shm": 0o600}
        assert index._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert index._db.execute("PRAGMA synchronous").fetchone() == (1,)
        before = (tmp_path / "index.sqlite").read_bytes()
        index.checkpoint()
        assert (tmp_path / "index.sqlite").read_bytes() != before


def test_people_may_read_the_index_with_any_sqlite_tool(tmp_path: Path) -> None:
    with closing(Index.open(tmp_path / "index.sqlite")) as index:
        index.fold(placed(one_job()))
        with closing(sqlite3.connect(tmp_path / "index.sqlite")) as db:
            assert db.execute("SELECT state, tool, client, requested_at FROM job").fetchall() == [
                ("completed", "generate_image", "a client", "2026-11-22T12:00:00.000002+00:00")
            ]
            assert db.execute("SELECT day, settled, images FROM spending").fetchall() == [("2026-11-22", 11_000, 1)]


def test_jobs_that_are_over_leave_the_index_board_and_live_ones_stay(tmp_path: Path) -> None:
    live = commit(7, requested(job_id(2)), words=said(prompt="later"))
    with closing(Index.open(tmp_path / "index.sqlite")) as index:
        index.fold(placed([*one_job(), live]))
        assert [job.id for job in index.board] == [job_id(2)]


def test_replaying_a_long_log_in_pieces_gives_the_index_of_one_fold(tmp_path: Path) -> None:
    commits = [one for number in range(300) for one in one_job(2 + number * 5, number=number)]
    located = written(tmp_path / "events", chunks(commits, [7] * 50), NoReserve(), segment_bytes=40_000)
    log, index = started(tmp_path)
    with closing(log), closing(index), closing(Index.open(tmp_path / "other.sqlite")) as other:
        other.fold(located)
        assert dump(index) == dump(other) and len(all_jobs(tmp_path / "index.sqlite")) == 300
    log, recovery, _ = opened(tmp_path / "events", NoReserve(), mark=located[-1].mark)
    log.close()
    assert recovery.replayed == 0


def test_an_index_that_turns_out_damaged_while_it_is_written_is_made_anew_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    located = written(tmp_path / "events", [[one] for one in (*one_job(), *one_job(7, number=2))], NoReserve())
    first = Index.open(path)
    first.fold(located[:6])
    first.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        ((page,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'job_by_time'").fetchall()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    data[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(data)
    damaged = Index.open(path)
    damaged.fold(located[6:])
    assert damaged.stale
    damaged.close()
    again = Index.open(path)
    assert again.mark is None and not again.stale
    again.close()
