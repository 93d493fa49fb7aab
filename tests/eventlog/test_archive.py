"""The beginning of a log moved out of it: what is left tells the same, and no crash loses a byte of either part."""

import copy
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog import stub as stub_module
from eventlog.archiving import Archive, Cut, NotArchived, find_cut, forget_archived, moved_by, remove_archived, standing
from eventlog.audit import narrate, verify
from eventlog.disk import Disk
from eventlog.errors import LogCorrupt, LogDead, LogFull
from eventlog.events import Commit, LogArchived, WordsForgotten
from eventlog.forgetting import find
from eventlog.history import GenerationQuery, History, JobQuery
from eventlog.index import Index
from eventlog.jobs import Job
from eventlog.log import EventLog
from eventlog.segments import MarkNotThere, beginning, read_log, segment_name, segment_starts
from eventlog.stub import stub_name
from eventlog.values import ArchivedSegment, JobId, Position
from tests.eventlog.builders import (
    DAWN,
    DIGEST,
    append,
    board_of,
    commit,
    commits_of,
    dump,
    job_id,
    one_job,
    opened,
    written,
)
from tests.eventlog.disks import NoReserve, PowerCut, SimulatedDisk, fail, fail_nth

LATER = timedelta(days=3650)  # than the log's own first commit, which is stamped by the clock
HOME, COPIES = Path("/home"), Path("/archive")
SECRET = "Zuckerwatteﾎﾞﾂﾁ"


def hour(position: int) -> datetime:
    """The moment of this commit, which is the first one that is not older."""
    return DAWN + LATER + timedelta(hours=position, microseconds=position)


def later(commits: Iterable[Commit]) -> list[Commit]:
    return [msgspec.structs.replace(one, at=one.at + LATER) for one in commits]


def three_jobs() -> list[Commit]:
    """Two that are over, and one that is not."""
    return later([*one_job(2, prompt=SECRET), *one_job(7, number=2), *one_job(12, number=3)[:3]])


@contextmanager
def home_of(events: Path, disk: Disk | None = None, *, index: Path) -> Iterator[tuple[EventLog, Index]]:
    """Opened as the daemon does."""
    log = EventLog(events, software="0.1.0", disk=disk or NoReserve())
    with closing(log), closing(Index.open(index)) as views:
        log.lock()
        with views.in_bulk():
            log.recover(views.mark, views.fold, restore=views.restore)
        yield log, views


def archive(events: Path, before: datetime, copies: Path, disk: Disk | None = None) -> LogArchived:
    disk = disk or NoReserve()
    with tempfile.TemporaryDirectory() as folder, home_of(events, disk, index=Path(folder) / "i") as (log, index):
        cut = find_cut(events, before, disk)
        assert cut is not None
        with standing(events, cut, disk) as stood:
            return Archive(copies, disk).move(log, cut, stood, lambda one: index.fold([one]))


def jobs_of(events: Path, disk: Disk | None = None) -> dict[JobId, Job]:
    """Of an index made anew."""
    with tempfile.TemporaryDirectory() as folder, home_of(events, disk, index=Path(folder) / "i") as (_, index):
        return {job.id: job for job in index.jobs()}


def bytes_of(events: Path, copies: Path, end: int) -> bytes:
    """The whole log up to this byte, from both places."""
    whole = bytearray()
    for folder in (copies / "events", events):
        for start in segment_starts([path.name for path in folder.iterdir()]):
            data = (folder / segment_name(start)).read_bytes()
            assert start <= len(whole)
            whole[start:] = data
    return bytes(whole[:end])


@settings(max_examples=40, deadline=None)
@given(
    choices=st.lists(st.integers(0, 4095), min_size=4, max_size=40),
    batch=st.integers(1, 5),
    before=st.integers(3, 40),
    segment_bytes=st.sampled_from([700, 5000, 64 * 1024 * 1024]),
)
def test_what_is_left_of_any_log_tells_the_same_as_the_whole(
    choices: list[int], batch: int, before: int, segment_bytes: int
) -> None:
    commits = later(commits_of(choices))
    with tempfile.TemporaryDirectory() as directory:
        events, copies, old = Path(directory) / "events", Path(directory) / "copies", Path(directory) / "old"
        batches = [commits[start : start + batch] for start in range(0, len(commits), batch)]
        located = written(events, batches, NoReserve(), segment_bytes=segment_bytes)
        whole = b"".join((events / segment_name(start)).read_bytes() for start in starts_in(events))
        cut = find_cut(events, hour(before))
        first_kept = min((one.position for one in commits if one.at >= hour(before)), default=len(commits) + 2)
        if first_kept <= 2:
            assert cut is None or cut.mark.position == 1
        if cut is None:
            return
        assert cut.mark.position < first_kept and first_kept - cut.mark.position <= batch
        with home_of(events, index=old) as (log, followed), standing(events, cut) as stood:
            fact = Archive(copies).move(log, cut, stood, lambda one: followed.fold([one]))
            parts = moved_parts(copies)
            assert sum(len(part) for part in parts) == cut.end == sum(part.size_bytes for part in fact.segments)
            kept = b"".join((events / segment_name(start)).read_bytes() for start in starts_in(events))
            assert (b"".join(parts) + kept).startswith(whole)
            told = verify(events)
            assert (told.fault, told.archived, told.head) == (None, cut.mark.position, located[-1].mark.position + 1)
            log.close()
            with home_of(events, index=Path(directory) / "anew") as (_, anew):
                assert dump(anew) == dump(followed)
                assert {job.id: job for job in anew.jobs()} == board_of(commits)
                assert list(anew.board) == list(followed.board) and anew.spending == followed.spending
        assert [one.mark.position for one in read_log(events, None)] == list(range(cut.mark.position + 1, told.head + 1))


def starts_in(folder: Path) -> list[int]:
    return segment_starts([path.name for path in folder.iterdir()])


def moved_parts(copies: Path) -> list[bytes]:
    return [(copies / "events" / segment_name(start)).read_bytes() for start in starts_in(copies / "events")]


def test_nothing_is_older_than_the_first_commit(tmp_path: Path) -> None:
    written(tmp_path, [three_jobs()], NoReserve())
    assert find_cut(tmp_path, DAWN - LATER) is None


def test_what_shares_a_sync_stays_together(tmp_path: Path) -> None:
    commits = three_jobs()
    written(tmp_path, [commits[:4], commits[4:8], commits[8:]], NoReserve())
    cut = find_cut(tmp_path, hour(8))
    assert cut is not None and (cut.mark.position, cut.commits) == (5, 5)


def test_a_log_that_is_older_as_a_whole_goes_on_with_the_fact_that_it_was_archived(tmp_path: Path) -> None:
    events = tmp_path / "events"
    written(events, [three_jobs()], NoReserve())
    fact = archive(events, hour(99), tmp_path / "copies")
    (only,) = read_log(events, None)
    assert only.commit.events == (fact,) and verify(events).fault is None
    assert jobs_of(events) == board_of(three_jobs())


def test_a_job_that_was_not_over_comes_to_its_end_behind_the_stub(tmp_path: Path) -> None:
    events = tmp_path / "events"
    written(events, [[one] for one in three_jobs()], NoReserve())
    archive(events, hour(99), tmp_path / "copies")
    with home_of(events, index=tmp_path / "i") as (log, index):
        assert [job.id for job in index.board] == [job_id(3)] and index.spending.reserved == 13_000
        ends = [msgspec.structs.replace(one, position=Position(one.position + 1)) for one in later(one_job(12, number=3))[3:]]
        index.fold(append(log, ends))
        assert not list(index.board) and index.spending.reserved == 0
    assert verify(events).fault is None


def test_it_can_be_archived_again_and_again(tmp_path: Path) -> None:
    events, copies = tmp_path / "events", tmp_path / "copies"
    written(events, [[one] for one in three_jobs()], NoReserve(), segment_bytes=2500)
    whole = b"".join((events / segment_name(start)).read_bytes() for start in starts_in(events))
    for before in (4, 9, 11):
        archive(events, hour(before), copies)
        assert verify(events).fault is None and jobs_of(events) == board_of(three_jobs())
        assert len([path for path in events.iterdir() if path.name.startswith("archived-")]) == 1
    assert b"".join(moved_parts(copies)) == whole[: sum(map(len, moved_parts(copies)))]
    assert verify(copies / "events").head == verify(events).archived


def test_what_was_archived_comes_back_by_putting_the_segments_back(tmp_path: Path) -> None:
    events, copies = tmp_path / "events", tmp_path / "copies"
    written(events, [[one] for one in three_jobs()], NoReserve(), segment_bytes=2500)
    archive(events, hour(9), copies)
    for path in (copies / "events").iterdir():
        path.rename(events / path.name)
    (events / stub_name(starts_in(events)[0])).unlink()
    told = verify(events)
    assert (told.fault, told.archived) == (None, 0) and jobs_of(events) == board_of(three_jobs())


def test_another_log_in_the_archive_is_left_as_it_is(tmp_path: Path) -> None:
    events, copies = tmp_path / "events", tmp_path / "copies"
    written(events, [three_jobs()], NoReserve())
    (copies / "events").mkdir(parents=True)
    taken = copies / "events" / segment_name(0)
    taken.write_bytes(b"another log")
    before = {path.name: path.read_bytes() for path in events.iterdir()}
    with pytest.raises(NotArchived, match=segment_name(0)):
        archive(events, hour(9), copies)
    assert taken.read_bytes() == b"another log"
    assert {path.name: path.read_bytes() for path in events.iterdir()} == before


def test_an_index_that_ends_within_the_archive_is_made_anew_from_the_stub(tmp_path: Path) -> None:
    events = tmp_path / "events"
    located = written(events, [[one] for one in three_jobs()], NoReserve())
    with closing(Index.open(tmp_path / "behind")) as behind:
        behind.fold(located[:5])
    archive(events, hour(9), tmp_path / "copies")
    with pytest.raises(MarkNotThere), home_of(events, index=tmp_path / "behind"):
        pass


def test_history_lists_and_finds_what_is_archived(tmp_path: Path) -> None:
    events = tmp_path / "events"
    written(events, [three_jobs()], NoReserve())
    archive(events, hour(99), tmp_path / "copies")
    with home_of(events, index=tmp_path / "i"), closing(History(tmp_path / "i")) as history:
        assert [job.id for job in history.generations(GenerationQuery(limit=9)).jobs] == [job_id(2), job_id(1)]
        assert [job.prompt for job in history.generations(GenerationQuery(limit=9, text="zucker")).jobs] == [SECRET]
        assert history.jobs(JobQuery(limit=9)).total == 3
        found = history.job_of_image(DIGEST)
        assert found is not None and found.images[0].path == "/pictures/fox in snow.png"


# The stub.


def archived_home(tmp_path: Path) -> tuple[Path, Path]:
    events = tmp_path / "events"
    written(events, [three_jobs()], NoReserve())
    archive(events, hour(99), tmp_path / "copies")
    (stub,) = events.glob("archived-*")
    return events, stub


@pytest.mark.parametrize("what", ["a bit", "a word", "a line less", "lines swapped", "cut", "nothing"])
def test_a_damaged_stub_is_named_and_nothing_is_changed(tmp_path: Path, what: str) -> None:
    events, stub = archived_home(tmp_path)
    lines = stub.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    changed = {
        "a bit": b"".join(lines).replace(b"gpt-image-2.5", b"gpt-image-2.4", 1),
        "a word": b"".join(lines).replace(b"fox in snow.png", b"cat in snow.png", 1),
        "a line less": b"".join(lines[:-1]),
        "lines swapped": b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]),
        "cut": b"".join(lines)[:-9],
        "nothing": b"",
    }[what]
    stub.write_bytes(changed)
    fault = verify(events).fault
    assert fault is not None and stub.name in fault.sentence and fault.offset == starts_in(events)[0]
    with pytest.raises(LogCorrupt, match=stub.name), home_of(events, index=tmp_path / "i"):
        pass
    assert stub.read_bytes() == changed


def test_a_stub_that_says_something_else_is_not_the_one_that_the_log_speaks_of(tmp_path: Path) -> None:
    events, stub = archived_home(tmp_path)
    with beginning(events) as there:
        assert there is not None
        kept = [one._replace(job=msgspec.structs.replace(one.job, billed="no")) for one in there.kept()]
        amounts, doubts = there.spending([]).rows(), there.spending([]).suspicions.items()
        spent = stub_module.Spent(amounts=tuple(amounts), suspicions=tuple(doubts))
        forged = b"".join(stub_module.lines_of(there.head, spent, kept, lambda: "0" * 32))
    stub.write_bytes(forged)
    assert jobs_of(events)[job_id(1)].billed == "no", "it proves itself"
    fault = verify(events).fault
    assert fault is not None and "not the one that the log speaks of" in fault.sentence


def test_a_log_without_its_stub_misses_its_first_segment(tmp_path: Path) -> None:
    events, stub = archived_home(tmp_path)
    stub.unlink()
    fault = verify(events).fault
    assert fault is not None and segment_name(0) in fault.sentence


def test_the_words_of_an_archived_job_leave_the_stub_and_its_proof_stays(tmp_path: Path) -> None:
    events, stub = archived_home(tmp_path)
    assert SECRET.encode() in stub.read_bytes()
    found = find(events, {job_id(1)})
    assert (found.archived, found.lines) == ({job_id(1)}, ())
    assert [job.prompt for job in found.jobs] == [SECRET] and found.shared == {DIGEST}
    with home_of(events, index=tmp_path / "i") as (log, index):
        position = Position(log.head.position + 1)
        index.fold(append(log, [later([commit(position, WordsForgotten(job=job_id(1), positions=()))])[0]]))
        assert verify(events).fault is None
        forget_archived(log, {job_id(1)})
    assert SECRET.encode() not in stub.read_bytes() and b"fox" in stub.read_bytes()
    told = verify(events)
    assert told.fault is None and [one.job for one in told.forgotten] == [job_id(1)]
    assert find(events, {job_id(1)}).archived == frozenset()
    again = jobs_of(events)
    assert again[job_id(1)].prompt is None and again[job_id(1)].forgotten_at is not None
    assert again[job_id(2)] == board_of(three_jobs())[job_id(2)]


def test_words_that_left_the_stub_without_a_fact_are_a_fault(tmp_path: Path) -> None:
    events, _ = archived_home(tmp_path)
    with home_of(events, index=tmp_path / "i") as (log, _):
        forget_archived(log, {job_id(1)})
    fault = verify(events).fault
    assert fault is not None and job_id(1) in fault.sentence and "no fact says why" in fault.sentence


def test_the_story_says_what_is_archived(tmp_path: Path) -> None:
    events, _ = archived_home(tmp_path)
    first, second = narrate(events)
    assert "what stands up to here is archived: 3 jobs" in first and "commits 1 to 14 were archived" in second


# Crashes and failures.


class Prepared:
    """A disk with a log, and what moving its beginning needs: made once, because every crash moves the same."""

    def __init__(self) -> None:
        self._disk = disk = SimulatedDisk()
        commits = three_jobs()
        written(HOME, [commits[:4], commits[4:9], commits[9:]], disk, segment_bytes=2500)
        cut = find_cut(HOME, hour(9), disk)
        assert cut is not None
        self.cut: Cut = cut
        with standing(HOME, cut, disk) as stood:
            self.stood = stood._replace(kept=list(stood.kept))
        self.whole = everything(disk)
        self.jobs = jobs_of(HOME, disk)

    def disk(self) -> SimulatedDisk:
        return copy.deepcopy(self._disk)

    def move(self, disk: SimulatedDisk) -> None:
        log, _, _ = opened(HOME, disk)
        try:
            Archive(COPIES, disk).move(log, self.cut, self.stood)
        finally:
            log.close()


def everything(disk: SimulatedDisk) -> bytes:
    """The log's bytes, from both places, each as far as it goes."""
    whole = bytearray()
    for folder in (COPIES / "events", HOME):
        names = disk.names_in(folder) if disk.is_directory(folder) else []
        for start in segment_starts(names):
            data = disk.content_of(folder / segment_name(start)) or b""
            if start <= len(whole):
                whole[start : start + len(data)] = data
    return bytes(whole)


def test_a_power_cut_at_any_moment_leaves_the_whole_log_and_the_next_try_finishes_it() -> None:
    prepared = Prepared()
    crashes, step = 0, 0
    while True:
        step += 1
        for seed in range(3):
            disk = prepared.disk()
            disk.before = fail_nth(step, PowerCut())
            try:
                prepared.move(disk)
            except PowerCut:
                crashes += 1
            else:
                if step > 5:
                    assert crashes > 40
                    return
            disk.before = lambda operation: None
            disk.cut_power(random.Random(step * 100 + seed))
            told = verify(HOME, disk)
            assert told.fault is None and told.archived in (0, prepared.cut.mark.position), (step, seed)
            assert everything(disk).startswith(prepared.whole), (step, seed)
            assert jobs_of(HOME, disk) == prepared.jobs
            if told.archived == 0:
                prepared.move(disk)
            else:
                log, _, _ = opened(HOME, disk)
                remove_archived(*held(log))
                log.close()
            told = verify(HOME, disk)
            assert (told.fault, told.archived) == (None, prepared.cut.mark.position)
            assert everything(disk).startswith(prepared.whole) and jobs_of(HOME, disk) == prepared.jobs
            assert not [name for name in disk.names_in(HOME) if name < segment_name(prepared.cut.end) and name[0] == "0"]


def held(log: EventLog) -> tuple[Disk, int]:
    with log.changing() as found:
        return found


@pytest.mark.parametrize("number", [28, 5])  # ENOSPC, EIO
def test_a_disk_that_refuses_leaves_the_whole_log(number: int) -> None:
    prepared = Prepared()
    for step in range(1, 200):
        disk = prepared.disk()
        log, _, _ = opened(HOME, disk)
        disk.before = fail_nth(step, fail(number))
        try:
            Archive(COPIES, disk).move(log, prepared.cut, prepared.stood)
        except (LogFull, LogDead, NotArchived):
            pass
        else:
            if step > 20:
                break
        log.close()
        disk.before = lambda operation: None
        disk.end_process()
        assert verify(HOME, disk).fault is None and everything(disk).startswith(prepared.whole), step
        assert jobs_of(HOME, disk) == prepared.jobs
    else:
        raise AssertionError("it never came to its end")


def test_what_would_be_moved_is_told_without_moving_it(tmp_path: Path) -> None:
    events, copies = tmp_path / "events", tmp_path / "copies"
    written(events, [[one] for one in three_jobs()], NoReserve(), segment_bytes=2500)
    before = {path.name: path.read_bytes() for path in events.iterdir()}
    cut = find_cut(events, hour(9))
    assert cut is not None
    told: tuple[ArchivedSegment, ...] = moved_by(events, cut)
    assert {path.name: path.read_bytes() for path in events.iterdir()} == before
    assert archive(events, hour(9), copies).segments == told
