"""The disposable read model: one SQLite file that follows the log.

Rule: it is a function of the log and nothing else. Every transaction holds its rows and the mark they reach;
what is missing, damaged, of another version or beside the log is thrown away and made anew. Only this file
writes it; anybody may open it read-only. It changes through the same `apply` as the live views.
"""

import contextlib
import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from eventlog.errors import IndexUnavailable
from eventlog.events import Commit, LaterEvent, WordsForgotten
from eventlog.jobs import Job, JobBoard, amend
from eventlog.searching import INDEXES, Prompts
from eventlog.searching import SCHEMA as PROMPTS
from eventlog.segments import Located, Mark
from eventlog.spending import Amounts, Period, Spending, Suspicion, reservations_of
from eventlog.values import JobId, Position

VERSION = 7
BUSY_SECONDS_MAX = 0.1  # every commit waits for this: what somebody else holds locked is written with the next one
# Checkpoints belong into idle moments: one made by a commit stalls the writer by up to 370 ms. This many pages
# (64 MiB) are only the bound for a daemon that is never idle.
CHECKPOINT_PAGES = 16_384

SCHEMA = """
CREATE TABLE reached (offset INTEGER NOT NULL, position INTEGER NOT NULL, hash TEXT NOT NULL);
CREATE TABLE job (
    number INTEGER PRIMARY KEY,           -- position of the request, or of the import
    id TEXT NOT NULL UNIQUE,
    position INTEGER NOT NULL,            -- of the commit that last changed it
    requested_at TEXT NOT NULL,           -- UTC, ISO 8601 with microseconds: sorts as text
    state TEXT NOT NULL,
    tool TEXT NOT NULL,
    model TEXT NOT NULL,
    client TEXT NOT NULL,
    key TEXT NOT NULL,
    request_key TEXT,                     -- digest of the asker's own key; NULL without one
    body BLOB NOT NULL                    -- the whole job, JSON
) STRICT;
CREATE INDEX job_by_state ON job (state, requested_at, number);
CREATE INDEX job_by_tool ON job (tool, state, requested_at, number);
CREATE INDEX job_by_model ON job (model, state, requested_at, number);
CREATE INDEX job_by_time ON job (requested_at, number);
CREATE INDEX job_by_request_key ON job (request_key) WHERE request_key IS NOT NULL;
CREATE TABLE tally (
    state TEXT NOT NULL, tool TEXT NOT NULL, model TEXT NOT NULL,
    jobs INTEGER NOT NULL,                -- how many there are of these
    PRIMARY KEY (state, tool, model)
) STRICT, WITHOUT ROWID;
CREATE TABLE image (
    sha256 TEXT NOT NULL,                 -- of a file as it was saved, or as it was received
    number INTEGER NOT NULL,              -- of its job
    PRIMARY KEY (sha256, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE spending (
    day TEXT, model TEXT, client TEXT, key TEXT,
    settled INTEGER NOT NULL, possibly_billed INTEGER NOT NULL,   -- micro-dollars
    unpriced INTEGER NOT NULL, images INTEGER NOT NULL, replies INTEGER NOT NULL,
    estimated_low INTEGER NOT NULL, estimated_high INTEGER NOT NULL,   -- micro-dollars
    unestimated INTEGER NOT NULL,
    PRIMARY KEY (day, model, client, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE suspicion (
    id TEXT PRIMARY KEY,                  -- of a job that may have been billed
    body BLOB NOT NULL                    -- where and with what its lost attempts are counted, JSON
) STRICT, WITHOUT ROWID;
CREATE TABLE forgetting (
    number INTEGER PRIMARY KEY,           -- of a WordsForgotten that is not known to be carried out
    body BLOB NOT NULL                    -- the fact, JSON
) STRICT;
"""
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
        self._jobs: dict[JobId, None] = {}  # what has changed and is not written yet
        self._periods: dict[Period, None] = {}
        self._later: list[tuple[Commit, LaterEvent]] = []
        row = connection.execute("SELECT offset, position, hash FROM reached").fetchone()
        self.mark = msgspec.convert(row, Mark) if row else None
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
            _remove(path)
            return cls._opened(path)
        except (*_UNUSABLE, OSError) as exc:
            raise IndexUnavailable(f"The index {path} cannot be made ({exc}); see to the disk, then start.") from exc

    @classmethod
    def _opened(cls, path: Path) -> "Index":
        connection = _connect(path)
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
            self._jobs.update(dict.fromkeys(self.board.apply(commit)))
            self._periods.update(dict.fromkeys(self.spending.apply(commit)))
            self._later += [(commit, event) for event in commit.events if isinstance(event, LaterEvent)]
        if self._damaged or not located:
            return
        try:
            self._write(self._jobs, self._periods, self._later, located[-1].mark)
        except sqlite3.Error as exc:
            logger.warning("the index falls behind", extra={"why": str(exc)})
            self.stale = True
            with contextlib.suppress(sqlite3.Error):
                self._db.rollback()
            if not isinstance(exc, sqlite3.OperationalError):
                # Damaged, not merely busy or without room: its name goes now, so that the next start makes it anew.
                # Open connections go on reading what they have.
                self._damaged = True
                with contextlib.suppress(OSError):
                    _remove(self._path)
            return
        self.stale = False
        self._jobs, self._periods, self._later = {}, {}, []

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
        _remove(self._path)

    def _write(
        self,
        jobs: Iterable[JobId],
        periods: Iterable[Period],
        later: Iterable[tuple[Commit, LaterEvent]],
        mark: Mark,
    ) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        written = [job for job_id in jobs if (job := self.board.get(job_id)) is not None]
        for job in written:
            self._write_job(job)
            self._write_suspicions(job.id)
        self._write_tally(written)
        for commit, event in later:
            self._amend(commit, event)
        amounts = dict(self.spending.rows())
        for period in periods:
            self._write_spending(period, amounts[period])
        self._db.execute("DELETE FROM reached")
        self._db.execute("INSERT INTO reached VALUES (?, ?, ?)", (mark.offset, mark.position, mark.hash))
        self._db.execute("COMMIT")
        self._states.update((job.id, job.state) for job in written)
        for job in written:
            if job.state.is_over:
                del self._states[job.id]
        self.mark = mark
        self.board.drop_over(mark.position)

    def _write_job(self, job: Job) -> None:
        digests = {digest for image in job.images for digest in (image.sha256, image.original)}
        self._db.executemany(
            "INSERT OR IGNORE INTO image VALUES (?, ?)", [(digest, job.requested_position) for digest in sorted(digests)]
        )
        if job.id in self._states:
            self._db.execute(
                "UPDATE job SET position = ?, state = ?, body = ? WHERE number = ?",
                (job.position, job.state.value, _encode(job), job.requested_position),
            )
            return
        self._db.execute(
            "INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
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
            ),
        )
        if job.prompt is not None:
            self._prompts.add(job.requested_position, job.prompt)

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

    def _write_suspicions(self, job_id: JobId) -> None:
        if suspicions := self.spending.suspicions.get(job_id):
            self._db.execute("INSERT OR REPLACE INTO suspicion VALUES (?, ?)", (job_id, _encode(suspicions)))

    def _write_spending(self, period: Period, amounts: Amounts) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO spending VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*msgspec.structs.astuple(period), *msgspec.structs.astuple(amounts)),
        )


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    db = sqlite3.connect(path, timeout=BUSY_SECONDS_MAX, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"version {version} instead of {VERSION}")
        if version == 0:
            db.executescript(f"BEGIN; {SCHEMA} {PROMPTS} PRAGMA user_version = {VERSION}; COMMIT;")
            with contextlib.suppress(sqlite3.OperationalError):  # an SQLite without trigrams: every search scans
                db.executescript(f"BEGIN; {INDEXES} COMMIT;")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _remove(path: Path) -> None:
    """With its companions: a stale -wal beside a new file is damage."""
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        name.unlink(missing_ok=True)


def _amounts(db: sqlite3.Connection) -> dict[Period, Amounts]:
    columns = [*Period.__struct_fields__, *Amounts.__struct_fields__]
    rows = [dict(zip(columns, row, strict=True)) for row in db.execute(f"SELECT {', '.join(columns)} FROM spending")]
    return {msgspec.convert(row, Period): msgspec.convert(row, Amounts) for row in rows}


def _suspicions(db: sqlite3.Connection) -> dict[JobId, tuple[Suspicion, ...]]:
    return {JobId(job_id): _decode_suspicions(body) for job_id, body in db.execute("SELECT id, body FROM suspicion")}
