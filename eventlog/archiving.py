"""Moving the beginning of a log out of it: whole commits that are older than a moment, and a stub in their place.

The order that a crash cannot spoil: the archive's files durable and read back → the stub durable under another name →
`LogArchived` durable → a segment that begins at the cut → the stub's own name, from where on it counts → the segments that
it stands for are removed. Whatever a crash leaves, the log reads as before or as after, and moving again finishes it.

Rule: only for whoever holds the log's lock. The archive gets copies; nothing is removed that has not been read there again.
"""

import contextlib
import hashlib
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import NamedTuple

import msgspec

from eventlog.disk import Disk
from eventlog.errors import IndexUnavailable
from eventlog.events import Commit, FactOfJob, LogArchived
from eventlog.forgetting import stored_by
from eventlog.framing import draft
from eventlog.index import Index
from eventlog.jobs import wordless
from eventlog.log import EventLog
from eventlog.segments import Located, Mark, Scan, beginning, read_log, segment_name, segment_starts, stub_before
from eventlog.stub import FORMAT, READ_BYTES, TEMPORARY, Head, Kept, Spent, Stub, lines_of, stub_ends, stub_name, write_file
from eventlog.values import ArchivedSegment, JobId, Position, Sha256, digest

FOLD_COMMITS = 250


class NotArchived(Exception):
    """The archive does not take it, and nothing was moved; the sentence says why."""


class Cut(NamedTuple):
    """Between two batches. `mark` and `at` are of the last commit before it, `end` is the byte at which the log goes on.

    `commits` counts those that are still in the log.
    """

    mark: Mark
    at: datetime
    end: int
    commits: int


class Stood(NamedTuple):
    """How things stood at the cut: `kept` are so many `jobs`, in the order in which they were requested."""

    jobs: int
    kept: Iterable[Kept]
    spent: Spent


def find_cut(directory: Path, before: datetime, disk: Disk | None = None) -> Cut | None:
    """The longest beginning of the log whose commits are all older; None if there is none. Reads without a lock.

    Raises:
        LogCorrupt, LogTooNew
        FileNotFoundError: there is no log.
    """
    disk = disk or Disk()
    descriptor = disk.open_directory(directory)
    try:
        scan = Scan(disk, descriptor, segment_starts(disk.names(descriptor)), None)
        cut, last, commits = None, None, 0
        for found in scan:
            commit, mark, _ = found.located
            if last is not None and found.batch == mark.position:
                cut = Cut(last.mark, last.commit.at, mark.offset, commits)
            if commit.at >= before:
                return cut
            last = found.located
            commits += 1
        return cut if last is None else Cut(last.mark, last.commit.at, scan.end, commits)
    finally:
        disk.close(descriptor)


@contextmanager
def standing(directory: Path, cut: Cut, disk: Disk | None = None) -> Iterator[Stood]:
    """Folded anew from the log up to the cut, and good for as long as the body lasts.

    Raises:
        LogCorrupt, LogTooNew
        IndexUnavailable: there is no room to fold it.
    """
    blobs: dict[JobId, dict[Sha256, None]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="imaged-archive-") as folder,
        closing(Index.open(Path(folder) / "index.sqlite")) as index,
    ):
        with index.in_bulk():
            with beginning(directory, disk) as stub:
                if stub is not None:
                    index.restore(stub)
                    blobs.update((one.job.id, dict.fromkeys(one.blobs)) for one in stub.kept() if one.blobs)
            log = read_log(directory, None, disk)
            before = takewhile(lambda one: one.mark.position <= cut.mark.position, log)
            while some := list(islice(before, FOLD_COMMITS)):
                index.fold(some)
                for event in chain.from_iterable(one.commit.events for one in some):
                    if isinstance(event, FactOfJob):
                        blobs.setdefault(event.job, {}).update(dict.fromkeys(stored_by(event)))
        if index.stale:
            raise IndexUnavailable(f"There is no room in {folder} to tell what is to be archived; make room, or set TMPDIR.")
        kept = (Kept(job, tuple(blobs.get(job.id, ()))) for job in index.jobs())
        spent = Spent(amounts=tuple(index.spending.rows()), suspicions=tuple(index.spending.suspicions.items()))
        yield Stood(index.count(), kept, spent)


def fingerprint(kept: Kept) -> Sha256:
    """Of what a job was, but for its words, which may be forgotten in one place and stand in another."""
    job = msgspec.structs.replace(wordless(kept.job), forgotten_at=None)
    return digest(msgspec.json.encode((job, sorted(kept.blobs))))


def moved_by(directory: Path, cut: Cut, disk: Disk | None = None) -> tuple[ArchivedSegment, ...]:
    """What would be moved: the segments before the cut, the last of them as far as there."""
    disk = disk or Disk()
    descriptor = disk.open_directory(directory)
    try:
        return tuple(
            ArchivedSegment(start=part.start, size_bytes=len(part), sha256=_digest_of(disk, descriptor, part))
            for part in _parts(disk, descriptor, cut)
        )
    finally:
        disk.close(descriptor)


class Archive:
    """Somewhere for a log's beginning, a folder like a home's own with `events/` in it. Blocking."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.events = path / "events"
        self._disk = disk or Disk()

    def move(
        self,
        log: EventLog,
        cut: Cut,
        stood: "Stood",
        follow: Callable[[Located], None] = lambda located: None,
    ) -> LogArchived:
        """Everything before the cut. The log takes nothing more after this; `follow` gets the one commit that is appended.

        Raises:
            NotArchived: the log was not changed.
            LogFull, LogDead: the log is as it was, or as it is to be.
        """
        prepared = f"{TEMPORARY}{stub_name(cut.end)}"
        with log.changing() as (disk, directory):
            segments = self._copied_or_not(disk, directory, cut)
            _clear(disk, directory)
            head = Head(
                format=FORMAT,
                end=cut.end,
                offset=cut.mark.offset,
                position=cut.mark.position,
                hash=cut.mark.hash,
                at=cut.at,
                jobs=stood.jobs,
            )
            write_file(disk, directory, prepared, lines_of(head, stood.spent, stood.kept, lambda: secrets.token_hex(16)))
            read_again = Stub(disk, directory, cut.end, prepared).hash()
        fact = LogArchived(up_to=cut.mark.position, hash=cut.mark.hash, offset=cut.end, stub=read_again, segments=segments)
        commit = Commit(position=Position(log.head.position + 1), at=datetime.now(UTC), events=(fact,))
        (mark,) = log.append([draft(commit)])
        follow(Located(commit, mark))
        with log.changing() as (disk, directory):
            _switch(disk, directory, cut.end, prepared)
            remove_archived(disk, directory)
        return fact

    def _copied_or_not(self, disk: Disk, directory: int, cut: Cut) -> tuple[ArchivedSegment, ...]:
        try:
            return self._copied(disk, directory, cut)
        except OSError as exc:
            raise NotArchived(f"{self.events} does not take a copy ({exc.strerror}); nothing was moved.") from exc

    def _copied(self, disk: Disk, directory: int, cut: Cut) -> tuple[ArchivedSegment, ...]:
        copies = self._disk.open_directory(self.events, create=True)
        try:
            segments = tuple(self._copy(disk, directory, copies, part) for part in _parts(disk, directory, cut))
            self._disk.sync_directory(copies)
            return segments
        finally:
            self._disk.close(copies)

    def _copy(self, disk: Disk, directory: int, copies: int, part: range) -> ArchivedSegment:
        name = segment_name(part.start)
        wanted = _digest_of(disk, directory, part)
        if name not in self._disk.names(copies):
            temporary = f"{TEMPORARY}{name}"
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(copies, temporary)
            write_file(self._disk, copies, temporary, _pieces(disk, directory, part))
            self._disk.rename_new(copies, temporary, name)
        there = self._disk.open(copies, name)
        try:
            size = self._disk.size(there)
        finally:
            self._disk.close(there)
        if size != len(part) or _digest_of(self._disk, copies, part) != wanted:
            raise NotArchived(f"{self.events / name} is there already, and is not what would be moved there.")
        return ArchivedSegment(start=part.start, size_bytes=len(part), sha256=wanted)


def forget_archived(log: EventLog, jobs: Collection[JobId]) -> None:
    """Remove the words of these jobs from the stub that the log begins with; a crash leaves it with them or without.

    Raises:
        LogFull: no room for the copy.
        LogCorrupt: the stub is damaged; nothing was changed.
        LogDead: the disk failed.
    """
    with log.changing() as (disk, directory):
        stub = stub_before(disk, directory, segment_starts(disk.names(directory)))
        if stub is not None:
            stub.without_words(jobs)


def remove_archived(disk: Disk, directory: int) -> int:
    """The segments and stubs that the one stub that counts stands for; how many there were. Only after `LogArchived`."""
    names = disk.names(directory)
    counting = segment_starts(names)
    begin = counting[0] if counting else 0
    gone = [name for name in names if any(number < begin for number in (*segment_starts([name]), *stub_ends([name])))]
    for name in gone:
        disk.unlink(directory, name)
    if gone:
        disk.sync_directory(directory)
    return len(gone)


def _parts(disk: Disk, directory: int, cut: Cut) -> list[range]:
    """Log-wide bytes, of one file each."""
    starts = segment_starts(disk.names(directory))
    ends = [*starts[1:], cut.end]
    return [range(start, min(end, cut.end)) for start, end in zip(starts, ends, strict=True) if start < cut.end]


def _pieces(disk: Disk, directory: int, part: range, start: int | None = None) -> Iterator[bytes]:
    """Of the file that begins at `start`, or where the part does."""
    start = part.start if start is None else start
    file = disk.open(directory, segment_name(start))
    try:
        for offset in range(part.start, part.stop, READ_BYTES):
            yield disk.pread(file, min(READ_BYTES, part.stop - offset), offset - start)
    finally:
        disk.close(file)


def _digest_of(disk: Disk, directory: int, part: range) -> Sha256:
    digest = hashlib.sha256()
    for piece in _pieces(disk, directory, part):
        digest.update(piece)
    return Sha256(digest.hexdigest())


def _clear(disk: Disk, directory: int) -> None:
    """What a crash left of an earlier try."""
    for name in disk.names(directory):
        if name.startswith(TEMPORARY):
            disk.unlink(directory, name)


def _switch(disk: Disk, directory: int, end: int, prepared: str) -> None:
    starts = segment_starts(disk.names(directory))
    if end not in starts:
        last = max(start for start in starts if start < end)
        behind = min((start for start in starts if start > end), default=None)
        if behind is None:
            file = disk.open(directory, segment_name(last))
            try:
                behind = last + disk.size(file)
            finally:
                disk.close(file)
        temporary = f"{TEMPORARY}{segment_name(end)}"
        write_file(disk, directory, temporary, _pieces(disk, directory, range(end, behind), last))
        disk.replace(directory, temporary, segment_name(end))
    disk.replace(directory, prepared, stub_name(end))
    disk.sync_directory(directory)
