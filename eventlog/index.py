"""The disposable read model: one SQLite file that follows the log.

Rule: it is a function of the log and nothing else. Every transaction holds its rows and the mark they reach;
what is missing, damaged, of another version or beside the log is thrown away and made anew. Only this file
writes it; anybody may open it read-only. It changes through the same `apply` as the live views.
"""

import contextlib
import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import msgspec

from eventlog.errors import IndexUnavailable
from eventlog.events import Commit, FactOfOver, LaterEvent, WordsForgotten
from eventlog.jobs import Job, JobBoard, amend
from eventlog.searching import Prompts
from eventlog.segments import START, Located, Mark, mark_of
from eventlog.spending import Amounts, Period, Spending, Suspicion, reservations_of
from eventlog.stub import Stub
from eventlog.tables import AS_USUAL, VERSIONED, connect, remove
from eventlog.values import JobId, Position

BULK_CACHE_KIB = 64 * 1024
BULK_JOBS = 2000  # written at once while a long stretch is followed
logger = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode_job = msgspec.json.Decoder(Job).decode
_decode_suspicions = msgspec.json.Decoder(tuple[Suspicion, ...]).decode
_decode_forgotten = msgspec.json.Decoder(WordsForgotten).decode
_UNUSABLE = (sqlite3.Error, msgspec.DecodeError, UnicodeDecodeError)


def instant(at: datetime) -> str:
    """UTC with microseconds, so that times sort as text."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


class Index:
    """The writing end, used by one thread at a time; blocking.

    `board` and `spending` are as of the last commit that was folded, even when the file is `stale` and stays
    behind; `mark` is what the file has reached.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._db = connection
        self._prompts = Prompts(connection)
        self.stale = False
        self._damaged = False
        self._jobs_at_once = 0  # so many are waited for before any is written
        self._journalled = True
        self._jobs: dict[JobId, None] = {}  # what has changed and is not written yet
        self._periods: dict[Period, None] = {}
        self._later: list[tuple[Commit, LaterEvent]] = []
        row = connection.execute("SELECT offset, position, hash FROM reached").fetchone()
        self.mark = msgspec.convert(row, Mark) if row else None
        self._followed = self.mark or START
        live = connection.execute("SELECT body FROM job WHERE state IN ('pending', 'running') ORDER BY number").fetchall()
        self.board = JobBoard(_decode_job(body) for (body,) in live)
        self._states = {job.id: job.state for job in self.board}  # of those that have a row and may change it
        self.spending = Spending(_amounts(connection), reservations_of(self.board), _suspicions(connection))

    @classmethod
    def open(cls, path: Path) -> "Index":
        """The index at `path`; one that cannot be used is thrown away and begun anew.

        Raises:
            IndexUnavailable: it cannot be begun anew either.
        """
        try:
            return cls._opened(path)
        except (*_UNUSABLE, OSError) as exc:
            logger.warning("the index is made anew", extra={"why": str(exc)})
        try:
            remove(path)
            return cls._opened(path)
        except (*_UNUSABLE, OSError) as exc:
            raise IndexUnavailable(f"The index {path} cannot be made ({exc}); see to the disk, then start.") from exc

    @classmethod
    def _opened(cls, path: Path) -> "Index":
        connection = connect(path)
        try:
            return cls(path, connection)
        except _UNUSABLE:
            connection.close()
            raise

    @property
    def reached(self) -> Position:
        return self.mark.position if self.mark else Position(0)

    def fold(self, located: Sequence[Located]) -> None:
        """Follow these commits in one transaction, and with them whatever could not be written before. Fails nobody:
        an index that somebody holds locked is caught up with the next commit, a damaged one at the next start.
        """
        for commit, _, _ in located:
            for job_id in self.board.apply(commit):
                self._jobs[job_id] = None
            for period in self.spending.apply(commit):
                self._periods[period] = None
            for event in commit.events:
                if isinstance(event, FactOfOver):
                    self._later.append((commit, event))
        if self._damaged or not located:
            return
        self._followed = located[-1].mark
        if len(self._jobs) >= self._jobs_at_once:
            self._catch_up()

    def restore(self, stub: Stub) -> None:
        """Begin as things stood behind what was archived. Fails nobody, as `fold`.

        Raises:
            LogCorrupt, LogTooNew: of the stub.
        """
        live = stub.live()
        self.board, self.spending = JobBoard(live), stub.spending(live)
        self._followed = mark_of(stub)
        self._states = {}
        try:
            self._db.execute("BEGIN IMMEDIATE")
            kept = stub.kept()
            while some := [one.job for one in islice(kept, BULK_JOBS)]:
                self._write_jobs(some)
                self._write_tally(some)
            for period, amounts in self.spending.rows():
                self._write_spending(period, amounts)
            self._reach(self._followed)
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            logger.warning("the index cannot be begun", extra={"why": str(exc)})
            self._give_up()
            return
        self._states = {job.id: job.state for job in live}
        self.mark = self._followed

    def _catch_up(self) -> None:
        try:
            self._write(self._jobs, self._periods, self._later, self._followed)
        except sqlite3.Error as exc:
            logger.warning("the index falls behind", extra={"why": str(exc)})
            self.stale = True
            with contextlib.suppress(sqlite3.Error):
                self._db.rollback()
            if not self._journalled or not isinstance(exc, sqlite3.OperationalError):
                self._give_up()
            return
        self.stale = False
        self._jobs, self._periods, self._later = {}, {}, []

    @contextmanager
    def in_bulk(self) -> Iterator[None]:
        """For as long as a long stretch of the log is followed: it is written in large pieces. An index that only begins is not
        journalled meanwhile; what a crash leaves of it has no version, and is made anew. Fails nobody, as `fold`.
        """
        if self.mark is None:
            for setting in ("user_version = 0", "journal_mode = OFF", "synchronous = OFF", f"cache_size = -{BULK_CACHE_KIB}"):
                self._db.execute(f"PRAGMA {setting}").fetchall()
            self._journalled = False
        self._jobs_at_once = BULK_JOBS
        try:
            yield
        finally:
            self._jobs_at_once = 0
        if not self._damaged and self._followed != (self.mark or START):
            self._catch_up()
        if self._damaged or self._journalled:
            return
        try:
            # The first checkpoint makes all of it durable; only then it gets its version.
            for step in (*AS_USUAL, "UPDATE reached SET position = position", "PRAGMA wal_checkpoint(TRUNCATE)", VERSIONED):
                self._db.execute(step).fetchall()
            self._journalled = True
        except sqlite3.Error as exc:
            logger.warning("the index cannot be finished", extra={"why": str(exc)})
            self._give_up()

    def checkpoint(self) -> None:
        """Bring the write-ahead log home; for idle moments. Waits for nobody, and fails nobody."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def letter(self, limit: int) -> bool:
        """For idle moments: let the search's indexes follow by so many prompts; whether some are left. Fails nobody."""
        if self.stale or self._damaged:
            return False
        try:
            return self._prompts.letter(limit)
        except sqlite3.Error as exc:
            logger.warning("the search's indexes fall behind", extra={"why": str(exc)})
            with contextlib.suppress(sqlite3.Error):
                self._db.rollback()
            return False

    def forgetting(self) -> tuple[WordsForgotten, ...]:
        """What was to be forgotten and is not known to be gone; after a rebuild that is everything that ever was.

        Raises:
            IndexUnavailable
        """
        try:
            rows = self._db.execute("SELECT body FROM forgetting ORDER BY number").fetchall()
            return tuple(_decode_forgotten(body) for (body,) in rows)
        except _UNUSABLE as exc:
            raise IndexUnavailable(f"The index {self._path} cannot be read ({exc}); restart the daemon.") from exc

    def count(self) -> int:
        """How many jobs there are."""
        return int(self._db.execute("SELECT count(*) FROM job").fetchone()[0])

    def jobs(self) -> Iterator[Job]:
        """All, in the order in which they were requested, while nothing else is written."""
        return (_decode_job(body) for (body,) in self._db.execute("SELECT body FROM job ORDER BY number"))

    def scrub(self) -> None:
        """No byte of what its rows no longer say is left in the file or its companions. Slow: writes all of it anew.

        Raises:
            IndexUnavailable: it is behind the log, somebody else is reading it, or there is no room; nothing is lost.
        """
        if self.stale:
            raise IndexUnavailable(f"The index {self._path} is behind the log; restart the daemon, then it catches up.")
        try:
            self._prompts.scrub()
            self._db.execute("VACUUM")
            (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as exc:
            raise IndexUnavailable(f"The index {self._path} cannot be written anew ({exc}); see to the disk.") from exc
        if busy:
            raise IndexUnavailable(f"Another program is reading the index {self._path}; close it.")

    def forgot(self, jobs: Iterable[JobId]) -> None:
        """Everything that was to be forgotten of these jobs is gone from everywhere.

        Raises:
            IndexUnavailable: that could not be noted; it is looked for again at the next start.
        """
        gone = set(jobs)
        try:
            for number, body in self._db.execute("SELECT number, body FROM forgetting").fetchall():
                if _decode_forgotten(body).job in gone:
                    self._db.execute("DELETE FROM forgetting WHERE number = ?", (number,))
        except _UNUSABLE as exc:
            raise IndexUnavailable(f"The index {self._path} cannot be written ({exc}); see to the disk.") from exc

    def close(self) -> None:
        self.checkpoint()
        self._db.close()

    def discard(self) -> None:
        self._db.close()
        remove(self._path)

    def _give_up(self) -> None:
        """Damaged, not merely busy or without room: its name goes now, so that the next start makes it anew. Open
        connections go on reading what they have.
        """
        self._damaged = self.stale = True
        with contextlib.suppress(OSError):
            remove(self._path)

    def _write(
        self,
        jobs: Iterable[JobId],
        periods: Iterable[Period],
        later: Iterable[tuple[Commit, LaterEvent]],
        mark: Mark,
    ) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        written = [job for job_id in jobs if (job := self.board.get(job_id)) is not None]
        if written:
            self._write_jobs(written)
            self._write_tally(written)
        for commit, event in later:
            self._amend(commit, event)
        for period in periods:
            self._write_spending(period, self.spending.row(period))
        self._reach(mark)
        self._db.execute("COMMIT")
        self._states.update((job.id, job.state) for job in written)
        for job in written:
            if job.state.is_over:
                del self._states[job.id]
        self.mark = mark
        self.board.drop_over(mark.position)

    def _reach(self, mark: Mark) -> None:
        self._db.execute("INSERT OR REPLACE INTO reached VALUES (0, ?, ?, ?)", (mark.offset, mark.position, mark.hash))

    def _write_jobs(self, jobs: Sequence[Job]) -> None:
        new = [job for job in jobs if job.id not in self._states]
        changed = [
            (job.position, job.state.value, _encode(job), job.requested_position) for job in jobs if job.id in self._states
        ]
        images = [
            (digest, job.requested_position)
            for job in jobs
            for image in job.images
            for digest in sorted({image.sha256, image.original})
        ]
        suspicions = [(job.id, _encode(found)) for job in jobs if (found := self.spending.suspicions.get(job.id))]
        self._db.executemany("INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_row, new))
        self._db.executemany("UPDATE job SET position = ?, state = ?, body = ? WHERE number = ?", changed)
        self._db.executemany("INSERT OR IGNORE INTO image VALUES (?, ?)", images)
        self._db.executemany("INSERT OR REPLACE INTO suspicion VALUES (?, ?)", suspicions)
        self._prompts.add((job.requested_position, job.prompt) for job in new if job.prompt is not None)

    def _write_tally(self, jobs: Iterable[Job]) -> None:
        changes: Counter[tuple[str, str, str]] = Counter()
        for job in jobs:
            of = (job.request.tool, job.request.model)
            if (before := self._states.get(job.id)) is not None:
                changes[before.value, *of] -= 1
            changes[job.state.value, *of] += 1
        told = "INSERT INTO tally VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs"
        self._db.executemany(told, [(*kind, count) for kind, count in changes.items() if count])

    def _amend(self, commit: Commit, event: LaterEvent) -> None:
        """A job that is over, whether or not the board has it still."""
        if isinstance(event, WordsForgotten):
            self._db.execute("INSERT INTO forgetting (body) VALUES (?)", (_encode(event),))
        else:
            self._db.execute("DELETE FROM suspicion WHERE id = ?", (event.job,))
        if self.board.get(event.job) is not None and not isinstance(event, WordsForgotten):
            return  # its row is as the board has it
        row = self._db.execute("SELECT number, body FROM job WHERE id = ?", (event.job,)).fetchone()
        if row is None:
            return
        number, body = row
        try:
            job = amend(_decode_job(body), event, commit)
        except msgspec.DecodeError as exc:
            raise sqlite3.DatabaseError(f"the row of job {event.job} is damaged") from exc
        if job.prompt is None:
            self._prompts.forget(number)
        self._db.execute("UPDATE job SET position = ?, body = ? WHERE number = ?", (job.position, _encode(job), number))

    def _write_spending(self, period: Period, amounts: Amounts) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO spending VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*msgspec.structs.astuple(period), *msgspec.structs.astuple(amounts)),
        )


def _row(job: Job) -> tuple[object, ...]:
    return (
        job.requested_position,
        job.id,
        job.position,
        instant(job.requested_at),
        job.state.value,
        job.request.tool,
        job.request.model,
        job.client.name,
        job.account.key,
        job.request_key or None,
        _encode(job),
    )


def _amounts(db: sqlite3.Connection) -> dict[Period, Amounts]:
    columns = [*Period.__struct_fields__, *Amounts.__struct_fields__]
    rows = [dict(zip(columns, row, strict=True)) for row in db.execute(f"SELECT {', '.join(columns)} FROM spending")]
    return {msgspec.convert(row, Period): msgspec.convert(row, Amounts) for row in rows}


def _suspicions(db: sqlite3.Connection) -> dict[JobId, tuple[Suspicion, ...]]:
    return {JobId(job_id): _decode_suspicions(body) for job_id, body in db.execute("SELECT id, body FROM suspicion")}
