"""Damaged logs: every truncation and every flipped bit ends in a torn tail or a refusal, never in a wrong view."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from eventlog.audit import verify
from eventlog.errors import LogCorrupt, LogTooNew
from eventlog.framing import LINE_BYTES_MAX, draft, seal
from eventlog.log import Recovery
from eventlog.segments import READ_BYTES, Located, Mark, MarkNotThere, read_log, segment_name
from eventlog.values import Position, Sha256
from tests.eventlog.builders import commit, one_job, opened, said, written
from tests.eventlog.disks import MemoryDisk

HERE = Path("/nowhere")
SEGMENT = segment_name(0)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of torn tails would be thousands of captured warnings."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def small_log(batches: Sequence[Sequence[int]]) -> tuple[MemoryDisk, list[Located], list[int]]:
    """A log whose commits stand in these batches, the disk that holds it, and where each line ends."""
    disk = MemoryDisk()
    located = written(HERE, [[commit(position, words=said(prompt="a b")) for position in batch] for batch in batches], disk)
    ends = [one.mark.offset for one in located[1:]] + [len(disk.files[SEGMENT].live)]
    return disk, located, ends


def recovered(data: bytes, mark: Mark | None = None) -> tuple[Recovery, list[Located], dict[str, bytes]]:
    disk = MemoryDisk()
    disk.replace_content({SEGMENT: data})
    try:
        log, recovery, replayed = opened(HERE, disk, mark=mark)
    except (LogCorrupt, LogTooNew, MarkNotThere):
        assert disk.content() == {SEGMENT: data}, "a refusal changes nothing"
        raise
    log.close()
    return recovery, replayed, disk.content()


def test_a_log_cut_at_any_byte_of_its_last_batch_opens_with_what_was_whole() -> None:
    disk, located, ends = small_log([[2], [3], [4, 5, 6]])
    data = bytes(disk.files[SEGMENT].live)
    for size in range(ends[2], len(data)):
        whole = sum(end <= size for end in ends)
        recovery, replayed, content = recovered(data[:size])
        assert replayed == located[:whole]
        assert recovery.head == located[whole - 1].mark
        assert content[SEGMENT] == data[: ends[whole - 1]]
        assert recovery.torn_bytes == size - ends[whole - 1]
        assert content.get(recovery.torn_file, b"") == data[ends[whole - 1] : size]


def test_a_log_cut_at_any_byte_of_its_last_three_batches_opens_with_what_was_whole() -> None:
    disk, located, ends = small_log([[2], [3], [4]])
    data = bytes(disk.files[SEGMENT].live)
    for size in range(ends[0], len(data)):
        whole = sum(end <= size for end in ends)
        assert recovered(data[:size])[1] == located[:whole]


def test_a_log_cut_to_nothing_of_its_first_line_begins_anew() -> None:
    disk, _, ends = small_log([])
    data = bytes(disk.files[SEGMENT].live)
    for size in range(ends[0]):
        recovery, replayed, content = recovered(data[:size])
        assert recovery.head.position == 1 and len(replayed) == 1
        assert recovery.torn_bytes == size and content.get(recovery.torn_file, b"") == data[:size]


def flips(data: bytes, start: int, end: int) -> list[bytes]:
    damaged = []
    for bit in range(start * 8, end * 8):
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(copy))
    return damaged


def test_any_bit_flipped_before_the_last_batch_is_refused_and_nothing_is_changed() -> None:
    disk, _, ends = small_log([[2], [3, 4], [5]])
    data = bytes(disk.files[SEGMENT].live)
    for damaged in flips(data, 0, ends[-2]):
        with pytest.raises(LogCorrupt):
            recovered(damaged)


def test_any_bit_flipped_in_the_last_batch_is_a_torn_tail_that_is_set_aside() -> None:
    disk, located, ends = small_log([[2], [3, 4]])
    data = bytes(disk.files[SEGMENT].live)
    for damaged in flips(data, ends[1], len(data)):
        recovery, replayed, content = recovered(damaged)
        whole = len(replayed)
        assert 2 <= whole < 4 and replayed == located[:whole]
        assert content[recovery.torn_file] == damaged[ends[whole - 1] :]


def test_any_bit_flipped_in_or_after_the_line_of_the_mark_is_refused_or_torn() -> None:
    disk, located, ends = small_log([[2], [3], [4]])
    data = bytes(disk.files[SEGMENT].live)
    mark = located[1].mark
    for damaged in flips(data, mark.offset, ends[1]):
        with pytest.raises(MarkNotThere):
            recovered(damaged, mark)
    for damaged in flips(data, ends[1], ends[2]):
        with pytest.raises(LogCorrupt):
            recovered(damaged, mark)
    for damaged in flips(data, ends[2], ends[3]):
        assert recovered(damaged, mark)[1] == located[2:3]


def test_damage_is_named_by_position_and_byte() -> None:
    disk, located, ends = small_log([[2], [3], [4]])
    data = bytearray(disk.files[SEGMENT].live)
    data[ends[0] + 100] ^= 1
    with pytest.raises(LogCorrupt, match="commit 2") as caught:
        recovered(bytes(data))
    assert (caught.value.position, caught.value.offset) == (2, located[1].mark.offset)


def test_a_sound_line_of_the_same_batch_behind_damage_is_torn_but_of_a_later_batch_is_corruption() -> None:
    for batches, corrupt in (([[2], [3, 4, 5]], False), ([[2], [3, 4], [5]], True), ([[2], [3], [4, 5]], True)):
        disk, located, ends = small_log(batches)
        data = bytearray(disk.files[SEGMENT].live)
        data[ends[1] + 80] ^= 1  # commit 3
        if corrupt:
            with pytest.raises(LogCorrupt):
                recovered(bytes(data))
        else:
            assert recovered(bytes(data))[1] == located[:2]


def test_a_newline_that_is_lost_does_not_hide_the_later_batch_behind_it() -> None:
    disk, _, ends = small_log([[2], [3], [4]])
    for end in ends[:-1]:
        data = bytearray(disk.files[SEGMENT].live)
        data[end - 1] = ord("x")
        with pytest.raises(LogCorrupt):
            recovered(bytes(data))


def test_a_later_batch_without_its_last_newline_still_proves_what_was_durable() -> None:
    disk, _, ends = small_log([[2], [3]])
    data = bytearray(disk.files[SEGMENT].live[:-1])
    data[ends[0] + 80] ^= 1
    with pytest.raises(LogCorrupt):
        recovered(bytes(data))


@pytest.mark.parametrize("more", [3 * READ_BYTES, 2 * READ_BYTES - 110], ids=["inside a piece", "across two pieces"])
def test_a_hole_longer_than_any_line_does_not_hide_the_later_batch_behind_it(more: int) -> None:
    disk, located, ends = small_log([[2], [3]])
    data = bytes(disk.files[SEGMENT].live)
    hole = bytes(LINE_BYTES_MAX + more)
    with pytest.raises(LogCorrupt):
        recovered(data[: ends[0] + 50] + hole + data[ends[1] :])
    recovery, replayed, content = recovered(data + hole)
    assert replayed == located and content[recovery.torn_file] == hole


@pytest.mark.parametrize("garbage", [b"\0" * 512, b"\n" * 512, bytes(range(256)) * 2])
def test_garbage_at_any_sector_before_the_last_batch_is_refused(garbage: bytes) -> None:
    disk, _, ends = small_log([[2], [3], [4], [5], [6]])
    data = bytes(disk.files[SEGMENT].live)
    for start in range(0, ends[-2] - 512, 64):
        with pytest.raises(LogCorrupt):
            recovered(data[:start] + garbage + data[start + 512 :])


def test_lines_removed_swapped_doubled_or_forged_are_found() -> None:
    disk, located, _ = small_log([[2], [3], [4], [5]])
    lines = bytes(disk.files[SEGMENT].live).splitlines(keepends=True)
    forged = seal(draft(commit(3)), located[1].mark.hash, Position(3)).line
    for damaged in (
        [lines[0], *lines[2:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:2], lines[1], *lines[2:]],
        [*lines[:2], forged, *lines[3:]],
    ):
        with pytest.raises(LogCorrupt):
            recovered(b"".join(damaged))


def test_a_line_that_follows_by_its_hash_but_not_by_its_number_is_not_taken() -> None:
    disk, located, _ = small_log([[2]])
    data = bytes(disk.files[SEGMENT].live)
    for position, batch in ((4, 3), (2, 2), (3, 0), (3, 4)):
        forged = seal(draft(commit(position)), located[-1].mark.hash, Position(batch)).line
        try:
            assert recovered(data + forged)[1] == located
        except LogCorrupt:
            assert batch > 3


def test_text_that_looks_like_a_line_is_not_taken_for_one() -> None:
    later = seal(draft(commit(9)), Sha256("0" * 64), Position(9)).line.decode().strip()
    disk = MemoryDisk()
    located = written(HERE, [[commit(2)], [commit(3, words=said(prompt=later, message=later))]], disk)
    data = bytearray(disk.files[SEGMENT].live)
    data[-3] ^= 1
    assert recovered(bytes(data))[1] == located[:2]


def test_a_mark_beside_the_log_is_not_there() -> None:
    disk, located, _ = small_log([[2], [3]])
    data = bytes(disk.files[SEGMENT].live)
    offset, position, proof = located[1].mark
    for wrong in (
        Mark(offset + 1, position, proof),
        Mark(offset, Position(position + 1), proof),
        Mark(offset, position, Sha256("0" * 64)),
        Mark(len(data), Position(4), proof),
        Mark(2**62, Position(9), proof),
        Mark(2**63 - 1, Position(9), proof),
        Mark(-1, Position(1), located[0].mark.hash),
    ):
        with pytest.raises(MarkNotThere):
            recovered(data, wrong)
    with pytest.raises(MarkNotThere):
        opened(HERE, MemoryDisk(), mark=located[1].mark)


def test_a_log_of_a_newer_version_is_left_alone() -> None:
    disk, located, _ = small_log([[2], [3]])
    data = bytes(disk.files[SEGMENT].live)
    body = draft(commit(4)).body.replace(b'"DaemonStarted"', b'"DaemonDanced"')
    newer = seal(draft(commit(4))._replace(body=body), located[-1].mark.hash, Position(4)).line
    with pytest.raises(LogTooNew, match="Commit 4"):
        recovered(data + newer)


def three_segments() -> MemoryDisk:
    disk = MemoryDisk()
    written(HERE, [[one] for one in one_job()], disk, segment_bytes=900)
    assert sum(name.endswith(".jsonl") for name in disk.files) >= 3
    return disk


def test_a_segment_that_is_missing_short_or_empty_is_corruption_unless_it_is_the_last() -> None:
    whole = three_segments().content()
    names = sorted(name for name in whole if name.endswith(".jsonl"))
    for name in names[:-1]:
        for damage in (None, b"", whole[name][:-1], whole[name][:-200]):
            content = {key: data for key, data in whole.items() if key != name}
            if damage is not None:
                content[name] = damage
            disk = MemoryDisk()
            disk.replace_content(content)
            with pytest.raises(LogCorrupt):
                opened(HERE, disk)
            assert disk.content() == content


def test_bytes_beyond_the_start_of_the_next_segment_are_the_ghost_of_a_cut_and_ignored() -> None:
    disk = three_segments()
    before = [one.mark for one in read_log(HERE, None, disk)]
    content = disk.content()
    content[SEGMENT] += b"ghost\n" * 5
    disk.replace_content(content)
    log, recovery, replayed = opened(HERE, disk)
    log.close()
    assert recovery.torn_bytes == 0 and [one.mark for one in replayed] == before


def test_every_flipped_bit_is_found_by_the_verifier_or_lies_in_the_last_batch() -> None:
    disk, _, ends = small_log([[2], [3]])
    data = bytes(disk.files[SEGMENT].live)
    for damaged in flips(data, 0, len(data)):
        disk.replace_content({SEGMENT: damaged})
        found = verify(HERE, disk)
        assert found.fault is not None or (found.head == 2 and found.unfinished_bytes == len(data) - ends[1])
