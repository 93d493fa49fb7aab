"""Disks that fill up, fail and lose power: what was acknowledged is there, and a dead log stays dead."""

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.errors import EventLogError, LogDead, LogFull
from eventlog.log import RESERVE_AGAIN_BYTES, RESERVE_BYTES
from eventlog.segments import Located, read_log, segment_name
from tests.eventlog.builders import append, commit, opened, said, written
from tests.eventlog.disks import MemoryDisk, PowerCut, fail, fail_nth

HERE = Path("/nowhere")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PLENTY = RESERVE_AGAIN_BYTES * 2


def reopened(disk: MemoryDisk) -> list[Located]:
    disk.before = lambda operation: None
    log, _, replayed = opened(HERE, disk)
    log.close()
    return replayed


@pytest.mark.parametrize("number", [errno.EIO, *NO_SPACE])
@pytest.mark.parametrize("operation", ["sync", "sync_directory"])
def test_a_failed_sync_is_the_end_of_the_log_in_this_process(operation: str, number: int) -> None:
    disk = MemoryDisk()
    log, _, _ = opened(HERE, disk, segment_bytes=1)
    disk.before = fail_nth(1, fail(number), only=operation)
    with pytest.raises(LogDead, match=f"{HERE}.*start again"):
        append(log, [commit(2)])
    disk.before = lambda operation: pytest.fail(f"{operation} after the log died")
    for _ in range(3):
        with pytest.raises(LogDead):
            append(log, [commit(2)])
    assert log.head.position == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EPIPE])
@pytest.mark.parametrize("operation", ["pwrite", "create"])
def test_a_failed_write_is_the_end_of_the_log_in_this_process(operation: str, number: int) -> None:
    disk = MemoryDisk()
    log, _, located = opened(HERE, disk, segment_bytes=1)
    disk.before = fail_nth(1, fail(number), only=operation)
    with pytest.raises(LogDead):
        append(log, [commit(2)])
    disk.before = lambda operation: pytest.fail(f"{operation} after the log died")
    with pytest.raises(LogDead):
        append(log, [commit(2)])
    assert reopened(disk) == located


def test_what_a_failed_sync_left_in_memory_only_is_written_again_at_the_next_start() -> None:
    disk = MemoryDisk()
    log, _, located = opened(HERE, disk)
    disk.before = fail_nth(1, fail(errno.EIO), only="sync")
    with pytest.raises(LogDead):
        append(log, [commit(2)])
    replayed = reopened(disk)  # the page cache still shows commit 2
    assert [one.commit.position for one in replayed] == [1, 2]
    disk.cut_power(random.Random(1))
    assert reopened(disk) == replayed
    assert located == replayed[:1]


@pytest.mark.parametrize("number", NO_SPACE)
@pytest.mark.parametrize("operation", ["pwrite", "create"])
def test_a_full_disk_takes_the_batch_into_the_reserve_and_says_that_it_is_full(operation: str, number: int) -> None:
    disk = MemoryDisk(free=PLENTY)
    log, _, located = opened(HERE, disk, segment_bytes=1)
    assert len(disk.files["reserve"].live) == RESERVE_BYTES
    disk.before = fail_nth(1, fail(number), only=operation)
    disk.free = 0
    located += append(log, [commit(2), commit(3)])
    assert log.full and "reserve" not in disk.files
    assert reopened(disk) == located


@pytest.mark.parametrize("number", NO_SPACE)
def test_a_disk_without_any_room_refuses_the_batch_and_the_log_stays_good(number: int) -> None:
    disk = MemoryDisk()
    log, _, located = opened(HERE, disk)
    before = disk.content()
    disk.before = fail_nth(1, fail(number), only="pwrite", forever=True)
    for _ in range(2):
        with pytest.raises(LogFull, match=f"{HERE}; free some space"):
            append(log, [commit(2, words=said(prompt="a b"))])
        assert disk.content() == before and log.full
    disk.before = lambda operation: None
    located += append(log, [commit(2), commit(3)])
    assert reopened(disk) == located


def test_a_roll_on_a_full_disk_refuses_and_goes_on_later() -> None:
    for operation in ("create", "pwrite"):
        disk = MemoryDisk()
        log, _, located = opened(HERE, disk, segment_bytes=1)
        disk.before = fail_nth(1, fail(errno.ENOSPC), only=operation, forever=True)
        with pytest.raises(LogFull):
            append(log, [commit(2)])
        disk.before = lambda operation: None
        located += append(log, [commit(2)])
        disk.cut_power(random.Random(2))
        assert reopened(disk) == located


def test_the_reserve_comes_back_with_the_room_and_the_log_is_not_full_any_more() -> None:
    disk = MemoryDisk(free=PLENTY)
    log, _, _ = opened(HERE, disk)
    disk.before = fail_nth(1, fail(errno.ENOSPC), only="pwrite")
    append(log, [commit(2)])
    assert log.full and "reserve" not in disk.files, "not in the very append that found the disk full"
    disk.free = RESERVE_AGAIN_BYTES - 1
    append(log, [commit(3)])
    assert log.full and "reserve" not in disk.files
    disk.free = RESERVE_AGAIN_BYTES
    append(log, [commit(4)])
    assert not log.full and len(disk.files["reserve"].live) == RESERVE_BYTES


def test_a_reserve_that_cannot_be_made_is_not_left_in_part_and_stops_nobody() -> None:
    disk = MemoryDisk(free=PLENTY)
    disk.before = fail_nth(3, fail(errno.EDQUOT), only="create", forever=False)
    written(HERE, [[commit(2)]], disk)
    disk.before = lambda operation: None
    disk.replace_content({name: data for name, data in disk.content().items() if name != "reserve"})
    disk.before = fail_nth(2, fail(errno.EDQUOT), only="pwrite")
    log, _, _ = opened(HERE, disk)
    assert "reserve" not in disk.files
    append(log, [commit(3)])


def test_a_torn_tail_on_a_full_disk_is_set_aside_in_the_room_of_the_reserve() -> None:
    disk = MemoryDisk(free=PLENTY)
    located = written(HERE, [[commit(2)]], disk)
    disk.files[segment_name(0)].live.extend(b"torn")
    disk.free = 0
    disk.before = fail_nth(1, fail(errno.ENOSPC), only="pwrite")
    log, recovery, replayed = opened(HERE, disk)
    assert replayed == located and disk.content()[recovery.torn_file] == b"torn"
    assert log.full and "reserve" not in disk.files


def test_a_torn_tail_that_finds_no_room_at_all_is_not_cut() -> None:
    disk = MemoryDisk()
    written(HERE, [[commit(2)]], disk)
    disk.files[segment_name(0)].live.extend(b"torn")
    before = disk.content()
    disk.before = fail_nth(1, fail(errno.ENOSPC), only="pwrite", forever=True)
    with pytest.raises(LogFull):
        opened(HERE, disk)
    assert disk.content() == before


def test_a_new_log_on_a_full_disk_is_refused_and_begun_later() -> None:
    disk = MemoryDisk()
    disk.before = fail_nth(1, fail(errno.ENOSPC), only="pwrite", forever=True)
    with pytest.raises(LogFull):
        opened(HERE, disk)
    assert [one.commit.position for one in reopened(disk)] == [1]


def test_every_operation_of_a_recovery_may_fail_and_the_next_one_succeeds() -> None:
    located = written(HERE, [[commit(2)], [commit(3)]], source := MemoryDisk(), segment_bytes=400)
    torn = source.content()
    torn[max(torn)] += b"torn"
    failures = 0
    while True:
        disk = MemoryDisk()
        disk.replace_content(torn)
        disk.before = fail_nth(failures + 1, fail(errno.EIO))
        try:
            log, _, replayed = opened(HERE, disk)
        except LogDead:
            failures += 1
            assert failures < 20, "a recovery takes fewer operations"
            disk.cut_power(random.Random(failures))
            assert reopened(disk) == located
        else:
            log.close()
            assert replayed == located and failures >= 7
            break


def test_every_step_of_a_roll_may_be_the_last_before_a_power_cut() -> None:
    for number in range(1, 6):
        for seed in range(20):
            disk = MemoryDisk()
            log, _, located = opened(HERE, disk, segment_bytes=1)
            disk.before = fail_nth(number, PowerCut())
            try:
                located += append(log, [commit(2), commit(3)])
            except PowerCut:
                disk.cut_power(random.Random(seed))
            replayed = reopened(disk)
            assert replayed[: len(located)] == located
            assert len(replayed) <= 3


class Life:
    """One log on a disk with bad luck: appends, faults, kills and power cuts, and what was acknowledged."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.disk = MemoryDisk()
        self.acknowledged: list[Located] = []
        self.sent: dict[bytes, int] = {}

    def live(self) -> None:
        for _ in range(self.chance.randrange(2, 6)):
            self._one_process()
            if self.chance.random() < 0.7:
                self.disk.cut_power(self.chance)
        self.disk.before = lambda operation: None
        self._insist(reopened(self.disk))

    def _one_process(self) -> None:
        self.disk.before = self._luck()
        try:
            log, _, replayed = opened(HERE, self.disk, segment_bytes=900)
            self._insist(replayed)
            # What a reopened log shows is durable, acknowledged or not.
            self.acknowledged = list(replayed)
            for _ in range(self.chance.randrange(6)):
                first = log.head.position + 1
                batch = [
                    commit(first + n, words=said(prompt="x" * self.chance.randrange(900), message=str(self.chance.random())))
                    for n in range(self.chance.randrange(1, 4))
                ]
                try:
                    self.acknowledged += append(log, batch)
                except LogFull:
                    continue
        except (PowerCut, LogDead, LogFull):
            pass  # the process is gone, one way or another

    def _luck(self) -> Callable[[str], None]:
        number = self.chance.randrange(1, 40)
        error = self.chance.choice([PowerCut(), fail(errno.EIO), fail(errno.ENOSPC), fail(errno.ENOSPC)])
        return fail_nth(number, error, forever=self.chance.random() < 0.3)

    def _insist(self, replayed: list[Located]) -> None:
        assert replayed[: len(self.acknowledged)] == self.acknowledged


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_luck_at_all_loses_what_was_acknowledged_or_keeps_the_log_from_opening(seed: int) -> None:
    Life(seed).live()


def test_a_thousand_lives_lose_nothing() -> None:
    for seed in range(1000):
        try:
            Life(seed).live()
        except (AssertionError, EventLogError) as exc:
            raise AssertionError(f"life {seed}") from exc


def test_a_reader_on_a_disk_after_a_power_cut_sees_what_was_acknowledged() -> None:
    for seed in range(50):
        disk = MemoryDisk()
        log, _, located = opened(HERE, disk)
        located += append(log, [commit(2)])
        disk.before = fail_nth(1, PowerCut(), only="sync")
        with pytest.raises(PowerCut):
            append(log, [commit(3), commit(4)])
        disk.cut_power(random.Random(seed))
        assert list(read_log(HERE, None, disk))[:2] == located
