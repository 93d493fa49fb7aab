"""The reading side of the log: segments, marks, and where the sound lines end.

Segments are named by the log-wide byte position of their first byte. Rules: a segment ends where the next one
begins, bytes beyond are the ghost of a cut that did not last; and damage is torn only if nothing after it
proves that it was once durable - see `Scan`.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from eventlog.disk import Disk
from eventlog.errors import LogCorrupt
from eventlog.events import Commit
from eventlog.framing import LINE_BYTES_MAX, NO_HASH, Line, Unsound, hidden_lines, read
from eventlog.stub import Stub, stub_ends
from eventlog.values import Position, Sha256

READ_BYTES = 1024 * 1024


class MarkNotThere(Exception):
    """The commit that a mark names is not at its place: the index belongs to another log, or to a later one."""


class Mark(NamedTuple):
    """One commit of the log. `offset` is the log-wide position of its line's first byte."""

    offset: int
    position: Position
    hash: Sha256


START = Mark(0, Position(0), NO_HASH)


class Located(NamedTuple):
    commit: Commit
    mark: Mark
    words_forgotten: bool = False


class Read(NamedTuple):
    """`batch` is the first commit of its sync, `raw` the line without its newline."""

    located: Located
    batch: Position
    raw: bytes


def read_log(directory: Path, after: Mark | None, disk: Disk | None = None) -> Iterator[Located]:
    """What follows `after`, read without a lock, beside a running daemon or on a copy.

    Ends where the finished lines end; a line that is just being written is not damage.

    Raises:
        MarkNotThere, LogCorrupt, LogTooNew
        FileNotFoundError: there is no log.
    """
    disk = disk or Disk()
    descriptor = disk.open_directory(directory)
    try:
        for found in Scan(disk, descriptor, segment_starts(disk.names(descriptor)), after):
            yield found.located
    finally:
        disk.close(descriptor)


@contextmanager
def beginning(directory: Path, disk: Disk | None = None) -> Iterator[Stub | None]:
    """What the log begins with, if segments were moved out of it; read without a lock, while this is open.

    Raises:
        LogCorrupt, LogTooNew
        FileNotFoundError: there is no log.
    """
    disk = disk or Disk()
    descriptor = disk.open_directory(directory)
    try:
        yield stub_before(disk, descriptor, segment_starts(disk.names(descriptor)))
    finally:
        disk.close(descriptor)


def stub_before(disk: Disk, directory: int, segments: list[int]) -> Stub | None:
    """What stands in the place of what was moved out before these; None if they begin at the first commit.

    Raises:
        LogCorrupt: it is damaged, or nothing stands there.
        LogTooNew
    """
    if not segments or segments[0] == 0:
        return None
    try:
        return Stub(disk, directory, segments[0])
    except FileNotFoundError:
        raise LogCorrupt(f"The first segment {segment_name(0)} is missing.", position=1, offset=0) from None


class Scan:
    """Reads lines in order from a mark on. After its end, `last` and `end` say where the sound lines stop."""

    def __init__(self, disk: Disk, directory: int, segments: list[int], mark: Mark | None) -> None:
        self._disk = disk
        self._directory = directory
        self._segments = segments
        self._mark = mark
        self.last = START
        self.end = 0

    def stub(self) -> Stub | None:
        """What to begin with, if it begins behind segments that were moved out.

        Raises:
            LogCorrupt: nothing stands in their place.
        """
        return None if self._mark is not None else stub_before(self._disk, self._directory, self._segments)

    def __iter__(self) -> Iterator[Read]:
        mark = self._mark
        if mark is None:
            stub = self.stub()
            if stub is not None:
                self.last, self.end = mark_of(stub), stub.head.end
            yield from self._follow(self.end)
            return
        found = self._at_mark(mark)
        self.last, self.end = mark, mark.offset + len(found.raw) + 1
        yield from self._follow(self.end)

    def _at_mark(self, mark: Mark) -> Read:
        try:
            is_archived = bool(self._segments) and mark.offset < self._segments[0]
            _, found = (None, None) if is_archived else next(self._lines(mark.offset), (None, None))
        except (Unsound, FileNotFoundError):
            found = None
        if found is None or found.located.mark != mark:
            raise MarkNotThere(f"commit {mark.position} is not at byte {mark.offset} of the log")
        return found

    def _follow(self, offset: int) -> Iterator[Read]:
        lines = self._lines(offset)
        suspected = -1
        while True:
            try:
                for line, found in lines:
                    self._insist_on_chain(line)
                    self.last = mark = found.located.mark
                    self.end = mark.offset + len(found.raw) + 1
                    yield found
                return
            except Unsound as exc:
                if not self._was_durable():
                    return
                # Beside a writer the line may have been finished since we read it, and the next batch written.
                # That batch is there now, so a second look at the line is the truth.
                if suspected == self.end:
                    raise self._corrupt(str(exc)) from exc
                suspected = self.end
                lines = self._lines(self.end)

    def _insist_on_chain(self, line: Line) -> None:
        if line.previous != self.last.hash or line.commit.position != self.last.position + 1:
            raise Unsound("the line does not follow the one before it")
        if not 1 <= line.batch <= line.commit.position:
            raise Unsound("the batch is impossible")

    def _was_durable(self) -> bool:
        """A line of a later batch, or a later segment, proves that what is damaged here was once durable."""
        position = self.last.position + 1
        return any(start > self.end for start in self._segments) or any(
            line.batch > position for line in self._sound_lines_after(self.end)
        )

    def _corrupt(self, why: str) -> LogCorrupt:
        position = self.last.position + 1
        return LogCorrupt(
            f"The event log is damaged at byte {self.end}, commit {position} ({why}). Nothing was changed; "
            "restore the segment from a backup.",
            position=position,
            offset=self.end,
        )

    def _sound_lines_after(self, offset: int) -> Iterator[Line]:
        for run, _, _ in self._runs(offset):
            for candidate in (run, *hidden_lines(run)):
                with contextlib.suppress(Unsound):
                    yield read(candidate)

    def _lines(self, offset: int) -> Iterator[tuple[Line, Read]]:
        for run, start, ended in self._runs(offset):
            if not ended:
                raise Unsound("the line is not finished")
            line = read(run)
            commit = line.commit
            yield line, Read(Located(commit, Mark(start, commit.position, line.hash), line.words_forgotten), line.batch, run)

    def _runs(self, offset: int) -> Iterator[tuple[bytes, int, bool]]:
        """Every run of bytes up to a newline, and the unfinished one at the end of each segment: where it starts, and whether
        it ended with a newline.

        A run longer than any line comes in overlapping pieces that end with none, so that memory stays bounded.
        """
        for number, start in enumerate(self._segments):
            end = self._segments[number + 1] if number + 1 < len(self._segments) else None
            if end is not None and end <= offset:
                continue
            descriptor = self._disk.open(self._directory, segment_name(start))
            try:
                yield from self._segment_runs(descriptor, start, end, max(offset, start))
            finally:
                self._disk.close(descriptor)

    def _segment_runs(self, fd: int, start: int, end: int | None, offset: int) -> Iterator[tuple[bytes, int, bool]]:
        if end is None and offset - start > self._disk.size(fd):
            return  # a damaged mark may name any number
        rest = b""
        while True:
            want = READ_BYTES if end is None else min(READ_BYTES, end - offset - len(rest))
            piece = self._disk.pread(fd, want, offset + len(rest) - start) if want > 0 else b""
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line, offset, True
                offset += len(line) + 1
            if not piece:
                break
            if len(rest) > LINE_BYTES_MAX + READ_BYTES:
                yield rest, offset, False
                rest = rest[READ_BYTES:]
                offset += READ_BYTES
        if rest:
            yield rest, offset, False
            offset += len(rest)
        if end is not None and offset < end:
            raise Unsound("the segment is shorter than the next one's name says")


def segment_starts(names: list[str]) -> list[int]:
    """Those that count: what stands before a stub is left over from its making."""
    starts = sorted(int(name[:20]) for name in names if len(name) == 26 and name.endswith(".jsonl") and name[:20].isdigit())
    begin = max((end for end in stub_ends(names) if end in starts), default=0)
    return [start for start in starts if start >= begin]


def mark_of(stub: Stub) -> Mark:
    """The last commit that it stands for."""
    return Mark(stub.head.offset, stub.head.position, stub.head.hash)


def segment_name(start: int) -> str:
    return f"{start:020}.jsonl"
