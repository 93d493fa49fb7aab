"""The writer on a good disk: lock, batches, segments, marks, and readers beside it."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from eventlog.disk import Disk
from eventlog.errors import LogCorrupt, LogDead, LogLocked
from eventlog.events import FORMAT, LogCreated
from eventlog.framing import NO_HASH, draft
from eventlog.log import REPLAY_COMMITS, RESERVE_BYTES, EventLog
from eventlog.segments import Located, Mark, MarkNotThere, Scan, read_log, segment_name, segment_starts
from tests.eventlog.builders import append, commit, one_job, opened, said, written
from tests.eventlog.disks import MemoryDisk, NoReserve, fail

HERE = Path("/nowhere")


def test_a_new_log_holds_the_fact_that_it_was_created(tmp_path: Path) -> None:
    log, recovery, replayed = opened(tmp_path / "events")
    log.close()
    assert [one.commit.events for one in replayed] == [(LogCreated(format=FORMAT, software="0.1.0"),)]
    assert recovery.head == log.head == replayed[0].mark and log.head.position == 1
    assert list(read_log(tmp_path / "events", None)) == replayed


def test_what_is_appended_is_read_again_in_order_with_its_marks(tmp_path: Path) -> None:
    located = written(tmp_path, [one_job(), [commit(7), commit(8)]], NoReserve())
    assert list(read_log(tmp_path, None)) == located
    for number, one in enumerate(located):
        assert list(read_log(tmp_path, one.mark)) == located[number + 1 :]
    log, recovery, replayed = opened(tmp_path, mark=located[2].mark)
    log.close()
    assert replayed == located[3:] and recovery.replayed == len(replayed) and recovery.head == located[-1].mark


def test_everything_is_for_its_owner_only(tmp_path: Path) -> None:
    events = tmp_path / "home" / "events"
    before = os.umask(0)
    try:
        written(events, [one_job()])
        data = events / segment_name(0)
        data.write_bytes(data.read_bytes()[:-1])
        log, recovery, _ = opened(events)
        log.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(events.stat().st_mode) == 0o700
    assert (events / recovery.torn_file).is_file()
    assert {stat.S_IMODE(path.stat().st_mode) for path in events.iterdir()} == {0o600}


def test_a_second_opener_is_told_which_directory_is_taken(tmp_path: Path) -> None:
    first, _, _ = opened(tmp_path, NoReserve())
    second = EventLog(tmp_path, software="0.1.0")
    with pytest.raises(LogLocked, match=str(tmp_path)):
        second.lock()
    append(first, [commit(2)])
    first.close()
    second.lock()
    assert second.recover(None, lambda located: None).head.position == 2
    second.close()


class ReadOnly(Disk):
    """A file system that was mounted read-only after the directory was made."""

    def open(self, directory: int, name: str, *, write: bool = False, create: bool = False) -> int:
        if write or create:
            raise fail(30)
        return super().open(directory, name)


def test_a_read_only_disk_is_said_in_a_sentence_that_names_the_directory(tmp_path: Path) -> None:
    with pytest.raises(LogDead, match=f"{tmp_path}.*Read-only file system.*start again"):
        opened(tmp_path, ReadOnly())
    located = written(tmp_path / "events", [[commit(2)]], NoReserve())
    with pytest.raises(LogDead, match="Read-only"):
        opened(tmp_path / "events", ReadOnly())
    assert list(read_log(tmp_path / "events", None, ReadOnly())) == located


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogDead, match=str(tmp_path / "file" / "events")):
        opened(tmp_path / "file" / "events")


def test_a_position_that_does_not_follow_is_a_bug_and_writes_nothing(tmp_path: Path) -> None:
    log, _, located = opened(tmp_path, NoReserve())
    for wrong in ([], [commit(3)], [commit(2), commit(2)], [commit(1)]):
        with pytest.raises(AssertionError):
            log.append([draft(one) for one in wrong])
    located += append(log, [commit(2)])
    log.close()
    assert list(read_log(tmp_path, None)) == located


def test_a_batch_names_its_first_commit_and_is_synced_once() -> None:
    disk = MemoryDisk()
    log, _, _ = opened(HERE, disk)
    operations: list[str] = []
    disk.before = operations.append
    append(log, [commit(2), commit(3), commit(4)])
    assert operations == ["pwrite", "sync"]
    append(log, [commit(5)])
    directory = disk.open_directory(HERE)
    lines = list(Scan(disk, directory, segment_starts(disk.names(directory)), None))
    assert [one.batch for one in lines] == [1, 2, 2, 2, 5]


def test_segments_are_named_by_their_first_byte_and_batches_stay_whole(tmp_path: Path) -> None:
    batches = [[commit(position), commit(position + 1, words=said(prompt="a b"))] for position in range(2, 40, 2)]
    located = written(tmp_path, batches, NoReserve(), segment_bytes=1500)
    starts = segment_starts([path.name for path in tmp_path.iterdir()])
    assert len(starts) > 5
    offset = 0
    for start in starts:
        assert start == offset
        offset += (tmp_path / segment_name(start)).stat().st_size
    first = {batch[0].position for batch in batches} | {1}
    at = {one.mark.offset: one.commit.position for one in located}
    assert all(at[start] in first for start in starts)
    assert list(read_log(tmp_path, None)) == located
    for one in located[:: len(located) // 5]:
        log, recovery, replayed = opened(tmp_path, NoReserve(), mark=one.mark, segment_bytes=1500)
        log.close()
        assert recovery.head == located[-1].mark and len(replayed) == len(located) - one.commit.position


def test_a_rolled_segment_is_named_durably_before_anybody_is_told() -> None:
    disk = MemoryDisk()
    log, _, _ = opened(HERE, disk, segment_bytes=1)
    operations: list[str] = []
    disk.before = operations.append
    append(log, [commit(2)])
    assert operations == ["create", "pwrite", "sync", "sync_directory"]


def test_replay_comes_in_pieces_that_end_with_a_batch() -> None:
    disk = MemoryDisk()
    positions = iter(range(2, 5000))
    located = written(HERE, [[commit(next(positions)) for _ in range(7)] for _ in range(500)], disk)
    pieces: list[list[Located]] = []
    log = EventLog(HERE, software="0.1.0", disk=disk)
    log.lock()
    log.recover(None, lambda piece: pieces.append(list(piece)))
    log.close()
    assert [one for piece in pieces for one in piece] == located
    assert len(pieces) == 14 and all(len(piece) < REPLAY_COMMITS + 7 for piece in pieces)
    assert all((piece[-1].commit.position - 1) % 7 == 0 for piece in pieces)


def test_nothing_of_the_last_batch_is_replayed_before_it_is_durable() -> None:
    disk = MemoryDisk()
    written(HERE, [[commit(2)]], disk)
    operations: list[str] = []
    disk.before = operations.append
    log = EventLog(HERE, software="0.1.0", disk=disk)
    log.lock()
    log.recover(None, lambda located: operations.append(f"replay {len(located)}"))
    assert operations == ["pwrite", "sync", "sync_directory", "replay 2"]


def test_torn_tails_are_kept_one_beside_the_other(tmp_path: Path) -> None:
    located = written(tmp_path, [[commit(2)]], NoReserve())
    segment = tmp_path / segment_name(0)
    sound = segment.read_bytes()
    names = []
    for torn in (b"first", b"second\n", b"x" * 3_000_000):
        segment.write_bytes(sound + torn)
        log, recovery, replayed = opened(tmp_path, NoReserve())
        log.close()
        assert replayed == located and segment.read_bytes() == sound
        assert recovery.torn_bytes == len(torn) and (tmp_path / recovery.torn_file).read_bytes() == torn
        names.append(recovery.torn_file)
    assert len(set(names)) == 3 and names[0] == f"torn-{len(sound)}"


def test_appending_goes_on_where_a_torn_tail_was_cut(tmp_path: Path) -> None:
    located = written(tmp_path, [[commit(2)], [commit(3)]], NoReserve())
    segment = tmp_path / segment_name(0)
    segment.write_bytes(segment.read_bytes()[:-5])
    log, _, replayed = opened(tmp_path, NoReserve())
    replayed += append(log, [commit(3, words=said(message="another third"))])
    log.close()
    assert replayed[:2] == located[:2] and list(read_log(tmp_path, None)) == replayed


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, bytes(data)[:7], offset))
    located = written(tmp_path, [one_job()], NoReserve())
    assert list(read_log(tmp_path, None)) == located


def test_the_reserve_is_made_once_and_made_whole_again(tmp_path: Path) -> None:
    written(tmp_path, [])
    reserve = tmp_path / "reserve"
    assert reserve.stat().st_size == RESERVE_BYTES
    reserve.write_bytes(b"part of one")
    log, _, _ = opened(tmp_path)
    log.close()
    assert reserve.stat().st_size == RESERVE_BYTES and not log.full


def test_a_reader_takes_a_write_under_way_for_the_end_and_never_for_damage() -> None:
    disk = MemoryDisk()
    located = written(HERE, [[commit(2)], [commit(3)], [commit(4)]], disk)
    data = bytes(disk.files[segment_name(0)].live)
    ends = [one.mark.offset for one in located[1:]] + [len(data)]
    for size in range(len(data) + 1):
        disk.replace_content({segment_name(0): data[:size]})
        assert list(read_log(HERE, None, disk)) == located[: sum(end <= size for end in ends)]


class FinishedMeanwhile(MemoryDisk):
    """The first read of the log ends in the middle of commit 3; every later one sees all of it."""

    def __init__(self, whole: bytes, seen_first: int) -> None:
        super().__init__()
        self.replace_content({segment_name(0): whole})
        self._seen_first = seen_first
        self._reads = 0

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self._reads += 1
        data = super().pread(fd, count, offset)
        return data[: max(0, self._seen_first - offset)] if self._reads <= 2 else data


def test_a_line_that_is_finished_while_the_reader_looks_for_later_ones_is_not_damage() -> None:
    disk = MemoryDisk()
    located = written(HERE, [[commit(2)], [commit(3)], [commit(4)]], disk)
    data = bytes(disk.files[segment_name(0)].live)
    beside = FinishedMeanwhile(data, located[2].mark.offset + 50)
    assert list(read_log(HERE, None, beside)) == located


def test_a_reader_follows_a_writer_across_segments(tmp_path: Path) -> None:
    log, _, located = opened(tmp_path, NoReserve(), segment_bytes=700)
    seen: list[Located] = []
    for position in range(2, 60):
        located += append(log, [commit(position)])
        if position % 3 == 0:
            seen += read_log(tmp_path, seen[-1].mark if seen else None)
            assert seen == located
    log.close()


def test_a_reader_of_another_log_is_told_that_its_mark_is_not_there(tmp_path: Path) -> None:
    located = written(tmp_path / "one", [[commit(2)]], NoReserve())
    written(tmp_path / "two", [[commit(2, words=said(prompt="x"))]], NoReserve())
    with pytest.raises(MarkNotThere):
        list(read_log(tmp_path / "two", located[1].mark))
    with pytest.raises(FileNotFoundError):
        list(read_log(tmp_path / "none", None))


def test_a_damaged_mark_may_name_any_byte(tmp_path: Path) -> None:
    located = written(tmp_path, [[commit(2)]], NoReserve())
    for offset in (-1, 10**9, 2**63 - 1):
        with pytest.raises(MarkNotThere):
            list(read_log(tmp_path, located[1].mark._replace(offset=offset)))


def test_the_first_line_follows_sixty_four_zeros(tmp_path: Path) -> None:
    written(tmp_path, [], NoReserve())
    assert f'{{"previous":"{NO_HASH}","position":1,"batch":1,'.encode() in (tmp_path / segment_name(0)).read_bytes()


VERIFY = """
set -eu
previous=$(printf '%064d' 0)
cat "$1"/*.jsonl | while IFS= read -r line; do
    hash=$(printf '%s' "$line" | cut -c-64)
    body=$(printf '%s' "$line" | cut -c66- | cut -d' ' -f1)
    [ "$(printf '%s' "$body" | sha256sum | cut -c-64)" = "$hash" ] || exit 1
    case "$body" in "{\\"previous\\":\\"$previous\\","*) ;; *) exit 2 ;; esac
    previous=$hash
done
"""


def test_a_shell_with_sha256sum_verifies_a_log(tmp_path: Path) -> None:
    written(tmp_path, [[one] for one in one_job()], NoReserve(), segment_bytes=900)

    def status() -> int:
        return subprocess.run(["sh", "-c", VERIFY, "sh", str(tmp_path)], timeout=20, check=False).returncode

    assert status() == 0
    first = tmp_path / segment_name(0)
    data = bytearray(first.read_bytes())
    data[150] ^= 1
    first.write_bytes(data)
    assert status() == 1
    first.unlink()
    assert status() == 2


def rotten_end(directory: Path) -> tuple[Mark, bytes]:
    """A log whose last line was durable, known to an index by this mark, and is damaged now."""
    located = written(directory, [[commit(2)], [commit(3)]], NoReserve())
    segment = directory / segment_name(0)
    data = bytearray(segment.read_bytes())
    data[located[-1].mark.offset + 100] ^= 1
    segment.write_bytes(data)
    return located[-1].mark, bytes(data)


def test_an_end_that_an_index_knew_to_be_durable_is_never_cut_as_torn(tmp_path: Path) -> None:
    mark, data = rotten_end(tmp_path)
    log = EventLog(tmp_path, software="test", disk=NoReserve())
    log.lock()
    try:
        with pytest.raises(MarkNotThere):
            log.recover(mark, lambda located: None)
        with pytest.raises(LogCorrupt, match="index knows commit 3") as caught:
            log.recover(None, lambda located: None, once_durable=mark)
        assert (caught.value.position, caught.value.offset) == (3, mark.offset)
    finally:
        log.close()
    assert (tmp_path / segment_name(0)).read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == [segment_name(0)]


def test_an_older_copy_of_a_log_opens_although_an_index_knows_more(tmp_path: Path) -> None:
    located = written(tmp_path, [[commit(2)], [commit(3)]], NoReserve())
    segment = tmp_path / segment_name(0)
    segment.write_bytes(segment.read_bytes()[: located[-1].mark.offset])
    log = EventLog(tmp_path, software="test", disk=NoReserve())
    log.lock()
    try:
        assert log.recover(None, lambda located: None, once_durable=located[-1].mark).head.position == 2
    finally:
        log.close()
