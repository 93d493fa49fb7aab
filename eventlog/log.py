"""The event log on disk: one writer, segments, durable batches, and what a crash leaves behind.

Rules, each found necessary by simulation (the reasons stand in the README's chapter on the log):
a batch is written only after the one before it is durable, so damage before the last batch is corruption and
damage inside it is a torn tail; a segment ends where the next begins; the last batch is written over itself
at the start, because after a failed sync its pages may live in memory only; after a failed write or sync
nothing is appended again.
"""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from eventlog.disk import Disk
from eventlog.errors import LogCorrupt, LogDead, LogFull, LogLocked
from eventlog.events import FORMAT, Commit, LogCreated
from eventlog.framing import Draft, draft, seal
from eventlog.rewriting import rewrite, sweep
from eventlog.segments import READ_BYTES, START, Located, Mark, Read, Scan, segment_name, segment_starts, stub_before
from eventlog.stub import Stub
from eventlog.values import Position

SEGMENT_BYTES = 64 * 1024 * 1024
RESERVE_BYTES = 4 * 1024 * 1024  # last words of a full disk: some thousand facts
RESERVE_AGAIN_BYTES = 64 * 1024 * 1024  # free space at which a full disk counts as healed
REPLAY_COMMITS = 250
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger(__name__)
Replay = Callable[[Sequence[Located]], None]
Restore = Callable[[Stub], None]


class Recovery(NamedTuple):
    """What `recover` found. `torn_file` holds the bytes that were cut off, if any were."""

    head: Mark
    replayed: int
    torn_bytes: int = 0
    torn_file: str = ""


class EventLog:
    """The writer. Blocking, and used by one thread at a time."""

    def __init__(self, directory: Path, *, software: str, disk: Disk | None = None, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._path = directory
        self._software = software
        self._disk = disk or Disk()
        self._segment_bytes = segment_bytes
        self._directory: int | None = None
        self._segment: int | None = None
        self._segment_start = 0
        self._end = 0
        self._dead: str = ""
        self.full = False
        self.head = START
        self.archived = Position(0)  # up to here, it was moved out

    def lock(self) -> None:
        """Take the log for this process, for as long as it is open.

        Raises:
            LogLocked: somebody else has it.
            LogDead: the directory cannot be made or opened.
        """
        try:
            directory = self._disk.open_directory(self._path, create=True)
            locked = self._disk.lock(directory)
        except OSError as exc:
            raise self._die("opened", exc) from exc
        if not locked:
            self._disk.close(directory)
            raise LogLocked(f"Another imaged is running on {self._path}; this one leaves it alone.")
        self._directory = directory

    @contextmanager
    def changing(self, verb: str = "written") -> Iterator[tuple[Disk, int]]:
        """The disk and the locked directory, for whoever changes more than appending does.

        Raises:
            LogFull, LogDead: what became of an OSError of the body.
        """
        assert self._directory is not None, "lock first"
        try:
            yield self._disk, self._directory
        except OSError as exc:
            if exc.errno in NO_SPACE:
                raise self._no_room() from exc
            raise self._die(verb, exc) from exc

    def close(self) -> None:
        for descriptor in (self._segment, self._directory):
            if descriptor is not None:
                self._disk.close(descriptor)
        self._segment = self._directory = None

    def recover(
        self, mark: Mark | None, replay: Replay, *, restore: Restore | None = None, once_durable: Mark | None = None
    ) -> Recovery:
        """Read what follows `mark` (None: everything), cut off a torn tail, and make the end writable.

        `replay` gets the commits in order, in pieces of about 5,000; never one that is not durable afterwards
        if this returns. `restore` gets the stub, before all else, if what is read begins with one.

        `once_durable` is a mark that an index was once given, and that led to MarkNotThere: a torn end that it lies
        in is no torn end but the loss of something durable.

        Raises:
            MarkNotThere, LogCorrupt, LogTooNew: nothing was changed.
            LogFull: no room to set a torn tail aside or to begin a log; nothing was cut.
            LogDead: the disk failed, or does not let us write.
        """
        with self.changing("put in order"):
            return self._recover(mark, replay, restore, once_durable)

    def _recover(self, mark: Mark | None, replay: Replay, restore: Restore | None, once_durable: Mark | None) -> Recovery:
        assert self._directory is not None and self._segment is None, "lock first, and recover once"
        segments = segment_starts(self._disk.names(self._directory))
        scan = Scan(self._disk, self._directory, segments, mark)
        if (stub := stub_before(self._disk, self._directory, segments)) is not None:
            self.archived = stub.head.position
            if mark is None and restore is not None:
                restore(stub)
        batch: list[Read] = []
        pending: list[Located] = []
        replayed = 0
        for found in scan:
            if found.batch == found.located.mark.position:  # what came before is durable
                batch = []
                if len(pending) >= REPLAY_COMMITS:
                    replay(pending)
                    pending = []
            batch.append(found)
            pending.append(found.located)
            replayed += 1
        if once_durable is not None and once_durable.position > scan.last.position:
            self._insist_on_clean_end(scan, segments, once_durable)
        torn_bytes, torn_file = self._repair(scan, segments, batch)
        if pending:
            replay(pending)
        self.head = scan.last
        if self.head.position == 0:
            self._begin(replay)
        self._keep_reserve()
        return Recovery(self.head, replayed, torn_bytes, torn_file)

    def append(self, drafts: Sequence[Draft]) -> tuple[Mark, ...]:
        """One batch, durable when this returns.

        Raises:
            LogFull: no room, even without the reserve. Nothing of the batch is there; the log stays good.
            LogDead: a write or sync failed, now or before. Nothing more is appended in this process.
        """
        if self._dead:
            raise LogDead(self._dead)
        assert drafts, "a batch holds at least one commit"
        was_full = self.full
        lines, marks = self._seal(drafts)
        try:
            try:
                self._write(lines)
            except OSError as exc:
                if exc.errno not in NO_SPACE:
                    raise
                self._make_room()
                self._write(lines)
        except OSError as exc:
            if exc.errno in NO_SPACE:
                self._cut_back()
                raise self._no_room() from exc
            raise self._die("written", exc) from exc
        self._sync()
        self._end += len(lines)
        self.head = marks[-1]
        if was_full:
            self._keep_reserve()
        return marks

    def look_for_room(self) -> None:
        """Of a log that is `full`: find out whether it still is, for whoever would be refused because of it."""
        self._keep_reserve()

    def forget(self, lines: Sequence[Mark]) -> tuple[Mark, ...]:
        """Remove the words of these commits from the first segment that holds some; returns what is left to do.

        The segment is replaced as a whole: a crash leaves the old one or the new one, and no offset changes.

        Raises:
            LogFull: no room for the copy; the segment is as it was.
            LogCorrupt: these commits are not there; nothing was changed.
            LogDead: the disk failed, now or before.
        """
        if self._dead:
            raise LogDead(self._dead)
        ordered = sorted(lines)
        with self.changing() as (disk, directory):
            sweep(disk, directory)
            if not ordered:
                return ()
            segments = segment_starts(disk.names(directory))
            number = max(index for index, start in enumerate(segments) if start <= ordered[0].offset)
            start, end = segments[number], [*segments, self._end][number + 1]
            rewrite(disk, directory, range(start, end), [line for line in ordered if line.offset < end])
        self._follow_rewriting(start)
        return tuple(line for line in ordered if line.offset >= end)

    def _follow_rewriting(self, start: int) -> None:
        """Whatever goes wrong from here on, the descriptor may show a file that has no name any more."""
        assert self._directory is not None
        try:
            self._disk.sync_directory(self._directory)
            if start == self._segment_start and self._segment is not None:
                self._disk.close(self._segment)
                self._segment = None
                self._segment = self._disk.open(self._directory, segment_name(start), write=True)
        except OSError as exc:
            raise self._die("synced", exc) from exc

    def _seal(self, drafts: Sequence[Draft]) -> tuple[bytes, tuple[Mark, ...]]:
        previous, offset, lines, marks = self.head.hash, self._end, [], []
        for position, item in enumerate(drafts, start=self.head.position + 1):
            assert item.position == position, f"commit {item.position} where {position} must follow"
            sealed = seal(item, previous, drafts[0].position)
            lines.append(sealed.line)
            marks.append(Mark(offset, item.position, sealed.hash))
            previous = sealed.hash
            offset += len(sealed.line)
        return b"".join(lines), tuple(marks)

    def _write(self, lines: bytes) -> None:
        if self._segment is None or self._end - self._segment_start >= self._segment_bytes:
            self._roll()
        assert self._segment is not None
        self._disk.pwrite(self._segment, lines, self._end - self._segment_start)

    def _roll(self) -> None:
        assert self._directory is not None
        segment = self._disk.open(self._directory, segment_name(self._end), create=True)
        if self._segment is not None:
            self._disk.close(self._segment)
        self._segment, self._segment_start = segment, self._end

    def _sync(self) -> None:
        assert self._segment is not None and self._directory is not None
        try:
            self._disk.sync(self._segment)
            if self._end == self._segment_start:  # its first batch: the name must last, too
                self._disk.sync_directory(self._directory)
        except OSError as exc:
            # No second try: after a failed sync Linux may drop the dirty pages and let the next one succeed.
            # Only reading the file again tells the truth.
            raise self._die("synced", exc) from exc

    def _no_room(self) -> LogFull:
        return LogFull(f"There is no room on the disk of {self._path}; free some space.")

    def _die(self, verb: str, exc: OSError) -> LogDead:
        self._dead = f"The event log in {self._path} could not be {verb} ({exc.strerror}); see to the disk and start again."
        return LogDead(self._dead)

    def _cut_back(self) -> None:
        if self._segment is None:
            return
        try:
            self._disk.truncate(self._segment, self._end - self._segment_start)
        except OSError as exc:
            raise self._die("cut back", exc) from exc

    def _make_room(self) -> None:
        assert self._directory is not None
        self._cut_back()
        self.full = True
        self._give_up_reserve()

    def _give_up_reserve(self) -> None:
        assert self._directory is not None
        if "reserve" in self._disk.names(self._directory):
            self._disk.unlink(self._directory, "reserve")

    def _keep_reserve(self) -> None:
        """Room for last words, kept as a file of zeros. Its absence is no reason to stop."""
        assert self._directory is not None
        try:
            if not self._has_reserve():
                self._give_up_reserve()  # a part of one, from a crash while it was made
                if self._disk.free_bytes(self._directory) < RESERVE_AGAIN_BYTES:
                    return
                self._make_reserve()
        except OSError as exc:
            logger.warning("no reserve beside the log", extra={"why": str(exc)})
            with contextlib.suppress(OSError):
                self._give_up_reserve()
            return
        self.full = False

    def _has_reserve(self) -> bool:
        assert self._directory is not None
        if "reserve" not in self._disk.names(self._directory):
            return False
        reserve = self._disk.open(self._directory, "reserve")
        try:
            return self._disk.size(reserve) >= RESERVE_BYTES
        finally:
            self._disk.close(reserve)

    def _make_reserve(self) -> None:
        assert self._directory is not None
        reserve = self._disk.open(self._directory, "reserve", create=True)
        try:
            self._disk.pwrite(reserve, bytes(RESERVE_BYTES), 0)
            self._disk.sync(reserve)
        finally:
            self._disk.close(reserve)

    def _insist_on_clean_end(self, scan: "Scan", segments: list[int], once_durable: Mark) -> None:
        """A log that ends cleanly before the mark is an older copy; one that ends in rubbish there has been damaged."""
        assert self._directory is not None
        if not segments:
            return
        segment = self._disk.open(self._directory, segment_name(segments[-1]))
        try:
            ends_at = segments[-1] + self._disk.size(segment)
        finally:
            self._disk.close(segment)
        if ends_at > scan.end:
            position = scan.last.position + 1
            raise LogCorrupt(
                f"The event log is damaged at byte {scan.end}, commit {position}: the index knows commit "
                f"{once_durable.position}, so what stands there was durable once. Nothing was changed; restore the segment "
                "from a backup, or delete index.sqlite to go on without what is lost.",
                position=position,
                offset=scan.end,
            )

    def _repair(self, scan: "Scan", segments: list[int], batch: list[Read]) -> tuple[int, str]:
        assert self._directory is not None
        self._end = scan.end
        if not segments:
            return 0, ""
        self._segment_start = segments[-1]
        self._segment = self._disk.open(self._directory, segment_name(segments[-1]), write=True)
        cut = self._end - self._segment_start
        torn = self._disk.size(self._segment) - cut
        torn_file = ""
        if torn > 0:
            torn_file = self._set_aside_in_the_room_there_is(cut, torn)
            self._disk.truncate(self._segment, cut)
        # After a failed sync the end may live in memory only, and the next power cut would take it.
        if batch and (first := batch[0].located.mark.offset) >= self._segment_start:
            raw = b"".join(found.raw + b"\n" for found in batch)
            self._disk.pwrite(self._segment, raw, first - self._segment_start)
        self._disk.sync(self._segment)
        self._disk.sync_directory(self._directory)
        return torn, torn_file

    def _set_aside_in_the_room_there_is(self, cut: int, torn: int) -> str:
        """A disk that filled up while a batch was written must not keep the log from opening."""
        try:
            return self._set_aside(cut, torn)
        except OSError as exc:
            if exc.errno not in NO_SPACE:
                raise
        self.full = True
        self._give_up_reserve()
        return self._set_aside(cut, torn)

    def _set_aside(self, cut: int, torn: int) -> str:
        assert self._directory is not None and self._segment is not None
        base = f"torn-{self._end}"
        taken = set(self._disk.names(self._directory))
        name = next(name for name in chain([base], (f"{base}-{again}" for again in count(1))) if name not in taken)
        aside = self._disk.open(self._directory, name, create=True)
        try:
            for start in range(0, torn, READ_BYTES):
                piece = self._disk.pread(self._segment, min(READ_BYTES, torn - start), cut + start)
                self._disk.pwrite(aside, piece, start)
            self._disk.sync(aside)
        except OSError:
            with contextlib.suppress(OSError):
                self._disk.unlink(self._directory, name)
            raise
        finally:
            self._disk.close(aside)
        logger.warning("the last write was torn and is set aside", extra={"file": name, "bytes": torn})
        return name

    def _begin(self, replay: Replay) -> None:
        created = Commit(position=Position(1), at=datetime.now(UTC), events=(LogCreated(format=FORMAT, software=self._software),))
        (mark,) = self.append([draft(created)])
        replay([Located(created, mark)])
