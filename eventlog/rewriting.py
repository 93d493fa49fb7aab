"""The one change that is ever made to a finished segment: spaces in place of words that are to be forgotten.

Rule: the new segment is whole and durable under a name of its own before it takes the place of the old one, and
not a byte of it stands elsewhere than it stood. Who reads the old file meanwhile reads on in it undisturbed.
"""

import contextlib
from collections.abc import Sequence

from eventlog.disk import Disk
from eventlog.errors import LogCorrupt
from eventlog.framing import LINE_BYTES_MAX, Unsound, read, without_words
from eventlog.segments import READ_BYTES, Mark, segment_name

TEMPORARY = "forgetting-"
LINE_AROUND_BYTES_MAX = 1024  # hash, previous, position and batch, which a line has beyond what is measured


def sweep(disk: Disk, directory: int) -> None:
    """Copies that a crash left half written, and torn ends that were kept for a human: both may hold anybody's words.

    Syncs the directory in any case: a crash may have come between the renaming of a segment and its sync.
    """
    for name in disk.names(directory):
        if name.startswith((TEMPORARY, "torn-")):
            disk.unlink(directory, name)
    disk.sync_directory(directory)


def rewrite(disk: Disk, directory: int, segment: range, lines: Sequence[Mark]) -> None:
    """`segment` are the log-wide bytes of one segment; what its file holds beyond them is dropped.

    The name is not durable when this returns: the caller syncs the directory.

    Raises:
        LogCorrupt: one of the lines is not there; nothing was changed.
        OSError: the old segment is as it was.
    """
    name = segment_name(segment.start)
    temporary = f"{TEMPORARY}{name}"
    old = disk.open(directory, name)
    try:
        changed = [(line.offset - segment.start, _changed(disk, old, segment, line)) for line in lines]
        try:
            _write(disk, directory, temporary, old, len(segment), changed)
            disk.replace(directory, temporary, name)
        except OSError:
            with contextlib.suppress(OSError):
                disk.unlink(directory, temporary)
            raise
    finally:
        disk.close(old)


def _changed(disk: Disk, old: int, segment: range, line: Mark) -> bytes:
    """The line without its words, where it stood."""
    found = disk.pread(old, min(LINE_BYTES_MAX + LINE_AROUND_BYTES_MAX, segment.stop - line.offset), line.offset - segment.start)
    raw = found.partition(b"\n")[0]
    try:
        parsed = read(raw)
    except Unsound as exc:
        raise _not_there(line) from exc
    if (parsed.commit.position, parsed.hash) != line[1:]:
        raise _not_there(line)
    return without_words(raw)


def _not_there(line: Mark) -> LogCorrupt:
    return LogCorrupt(
        f"Commit {line.position} does not stand at byte {line.offset} of the event log, so its words were not removed. "
        "Nothing was changed; run imaged verify.",
        position=line.position,
        offset=line.offset,
    )


def _write(disk: Disk, directory: int, name: str, old: int, size: int, changed: Sequence[tuple[int, bytes]]) -> None:
    new = disk.open(directory, name, create=True)
    try:
        for offset in range(0, size, READ_BYTES):
            disk.pwrite(new, disk.pread(old, min(READ_BYTES, size - offset), offset), offset)
        for offset, line in changed:
            disk.pwrite(new, line, offset)
        disk.sync(new)
    finally:
        disk.close(new)
