"""What is asked of the index: pages, filters and substring search, on a read connection of its own."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from eventlog.errors import IndexUnavailable
from eventlog.index import instant
from eventlog.jobs import Job
from eventlog.searching import candidates, folded, has_indexes
from eventlog.values import JobId, JobState, Position, Sha256

LAST_CHARACTER = "\U0010ffff"  # sorts behind whatever may follow a prefix
NEWEST_JOBS = 2000  # looked through for a text before its index is asked: what is frequent stands among them
COUNTED_MAX = 10_000  # whatever fits beyond is counted no more, unless the tally knows
FOUND_MAX = 1000  # the same behind a page of a search
NEWEST_FIRST = "ORDER BY requested_at DESC, number DESC"
OLDEST_FIRST = "ORDER BY requested_at, number"
IDS_AT_ONCE = 500  # SQLite's oldest limit of values in one question is 999

_decode_job = msgspec.json.Decoder(Job).decode


class GenerationQuery(msgspec.Struct, frozen=True, kw_only=True):
    """`since` is included, `until` is not; `as_of` leaves out what was completed later, so that pages hold still."""

    limit: int
    offset: int = 0
    tool: str | None = None
    model: str | None = None
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    as_of: Position | None = None


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    limit: int
    offset: int = 0
    tool: str | None = None
    state: JobState | None = None


class Page(NamedTuple):
    """Newest first by the time of asking. `total` counts all that fits or, with `at_least`, what of it has been looked at;
    `position` is the commit that the index had reached.
    """

    jobs: tuple[Job, ...]
    total: int
    position: Position
    at_least: bool = False


class _Found(NamedTuple):
    """Numbers of jobs, a page of them; `total` and `at_least` as of a Page."""

    numbers: Sequence[int]
    total: int
    at_least: bool


class _Filter:
    """A WHERE clause that grows; values never stand in the text. `is_tallied`: the tally has how many fit."""

    def __init__(self) -> None:
        self._clauses: list[str] = []
        self.values: list[object] = []
        self.is_tallied = True

    def add(self, clause: str, *values: object, tallied: bool = False) -> None:
        self._clauses.append(clause)
        self.values += values
        self.is_tallied = self.is_tallied and tallied

    @property
    def where(self) -> str:
        return "WHERE " + " AND ".join(self._clauses) if self._clauses else ""


class History:
    """Blocking; may be used from any thread, one question at a time."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            IndexUnavailable: nobody has made the index at `path`, or it cannot be read.
        """
        self._one_at_a_time = threading.Lock()
        with _said_plainly():
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
        try:
            with self._reading() as db:
                self._has_indexes = has_indexes(db)
        except IndexUnavailable:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def generations(self, query: GenerationQuery) -> Page:
        """Finished generations.

        Raises:
            IndexUnavailable
        """
        fits = _Filter()
        fits.add("state = 'completed'", tallied=True)
        if query.tool is not None:
            fits.add("tool = ?", query.tool, tallied=True)
        if query.model is not None:
            fits.add("model = ?", query.model, tallied=True)
        if query.since is not None:
            fits.add("requested_at >= ?", instant(query.since))
        if query.until is not None:
            fits.add("requested_at < ?", instant(query.until))
        if query.as_of is not None:
            fits.add("position <= ?", query.as_of)
        return self._page(fits, query.limit, query.offset, folded(query.text or ""))

    def jobs(self, query: JobQuery) -> Page:
        """Jobs of every state, or of one.

        Raises:
            IndexUnavailable
        """
        fits = _Filter()
        if query.state is not None:
            fits.add("state = ?", query.state.value, tallied=True)
        if query.tool is not None:
            fits.add("tool = ?", query.tool, tallied=True)
        return self._page(fits, query.limit, query.offset)

    def job(self, job_id: JobId) -> Job | None:
        """
        Raises:
            IndexUnavailable
        """
        if not _is_unicode(job_id):
            return None
        with self._reading() as db:
            row = db.execute("SELECT body FROM job WHERE id = ?", (job_id,)).fetchone()
            return None if row is None else _decode_job(row[0])

    def job_of_key(self, request_key: str) -> Job | None:
        """The job that was ordered under this digest of its asker's key.

        Raises:
            IndexUnavailable
        """
        with self._reading() as db:
            row = db.execute("SELECT body FROM job WHERE request_key = ?", (request_key,)).fetchone()
            return None if row is None else _decode_job(row[0])

    def job_of_image(self, sha256: Sha256) -> Job | None:
        """The newest job that saved or received these very bytes.

        Raises:
            IndexUnavailable
        """
        question = "SELECT body FROM job JOIN image USING (number) WHERE sha256 = ? ORDER BY number DESC LIMIT 1"
        with self._reading() as db:
            row = db.execute(question, (sha256,)).fetchone()
            return None if row is None else _decode_job(row[0])

    def unknown_of(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids that are of no job here.

        Raises:
            IndexUnavailable
        """
        unknown = {job_id for job_id in ids if _is_unicode(job_id)}
        with self._reading() as db:
            for start in range(0, len(ids), IDS_AT_ONCE):
                some = [job_id for job_id in ids[start : start + IDS_AT_ONCE] if _is_unicode(job_id)]
                marks = ", ".join("?" * len(some))
                unknown -= {found for (found,) in db.execute(f"SELECT id FROM job WHERE id IN ({marks})", some)}
        return unknown

    def completed_ids(self, prefix: str, limit: int) -> tuple[tuple[JobId, ...], int]:
        """Ids of finished generations that begin so, newest first, at most `limit`; and how many there are in all.

        Raises:
            IndexUnavailable
        """
        if not _is_unicode(prefix):
            return (), 0
        with self._reading() as db:
            rows = db.execute(
                "SELECT id, count(*) OVER () FROM job WHERE state = 'completed' AND id >= ? AND id < ? "
                "ORDER BY requested_at DESC, number DESC LIMIT ?",
                (prefix, prefix + LAST_CHARACTER, limit),
            ).fetchall()
            return tuple(JobId(found) for found, _ in rows), rows[0][1] if rows else 0

    def position(self) -> Position:
        """The last commit that the index has followed; 0 before the first.

        Raises:
            IndexUnavailable
        """
        with self._reading() as db:
            return _reached(db)

    def _page(self, fits: _Filter, limit: int, offset: int, text: str = "") -> Page:
        with self._reading() as db:
            db.execute("BEGIN")  # rows, total and position from one moment
            try:
                found = self._search(fits, limit, offset, text) if text else self._list(fits, limit, offset)
                bodies = [db.execute("SELECT body FROM job WHERE number = ?", (number,)).fetchone() for number in found.numbers]
                reached = _reached(db)
            finally:
                db.execute("ROLLBACK")
            return Page(tuple(_decode_job(body) for (body,) in bodies), found.total, reached, found.at_least)

    def _list(self, fits: _Filter, limit: int, offset: int) -> _Found:
        asked = f"SELECT number FROM job {fits.where}"
        if fits.is_tallied:
            (total,) = self._db.execute(f"SELECT total(jobs) FROM tally {fits.where}", fits.values).fetchone()
            behind = int(total) - offset
            if behind < offset:  # nearer from the other end: what is skipped is counted one by one
                rows = self._db.execute(
                    f"{asked} {OLDEST_FIRST} LIMIT ? OFFSET ?", (*fits.values, min(limit, max(0, behind)), max(0, behind - limit))
                )
                return _Found([number for (number,) in rows][::-1], int(total), at_least=False)
        rows = self._db.execute(f"{asked} {NEWEST_FIRST} LIMIT ? OFFSET ?", (*fits.values, limit, offset))
        numbers = [number for (number,) in rows]
        if fits.is_tallied:
            return _Found(numbers, int(total), at_least=False)
        counted_max = offset + COUNTED_MAX
        question = f"SELECT count(*) FROM (SELECT 1 FROM job {fits.where} LIMIT ?)"
        (total,) = self._db.execute(question, (*fits.values, counted_max + 1)).fetchone()
        return _Found(numbers, min(total, counted_max), at_least=total > counted_max)

    def _search(self, fits: _Filter, limit: int, offset: int, text: str) -> _Found:
        """Exactly Python's `in` on the folded prompts, newest first; what is rare costs what its index takes to name it."""
        if not _is_unicode(text):
            return _Found((), 0, at_least=False)  # no prompt holds it: what is not Unicode cannot be written to the log
        newest = f"SELECT number, requested_at FROM job {fits.where} {NEWEST_FIRST} LIMIT ?"
        (looked_at,) = self._db.execute(f"SELECT count(*) FROM ({newest})", (*fits.values, NEWEST_JOBS + 1)).fetchone()
        rows = self._db.execute(
            f"SELECT number FROM ({newest}) CROSS JOIN prompt USING (number) WHERE instr(folded, ?) > 0 {NEWEST_FIRST}",
            (*fits.values, NEWEST_JOBS, text),
        )
        numbers = [number for (number,) in rows]
        if looked_at <= NEWEST_JOBS or len(numbers) >= offset + limit:
            return _Found(numbers[offset : offset + limit], len(numbers), at_least=looked_at > NEWEST_JOBS)
        found_max = offset + limit + FOUND_MAX
        named, asked = self._candidates(text)
        rows = self._db.execute(
            f"SELECT number FROM ({named}) CROSS JOIN job USING (number) CROSS JOIN prompt USING (number) "
            f"{fits.where} AND instr(folded, ?) > 0 {NEWEST_FIRST} LIMIT ?",
            (*asked, *fits.values, text, found_max + 1),
        )
        numbers = [number for (number,) in rows]
        total = min(len(numbers), found_max)
        return _Found(numbers[offset : offset + limit], total, at_least=len(numbers) > found_max)

    def _candidates(self, text: str) -> tuple[str, tuple[object, ...]]:
        """A question for the numbers of all jobs that may hold the text, and its values."""
        if not self._has_indexes:
            return "SELECT number FROM prompt", ()
        index, words = candidates(text)
        (lettered,) = self._db.execute("SELECT number FROM lettered").fetchone()
        beyond = "SELECT number FROM prompt WHERE number > ?"
        return f"SELECT rowid AS number FROM {index} WHERE {index} MATCH ? UNION ALL {beyond}", (words, lettered)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._one_at_a_time, _said_plainly():
            yield self._db


@contextmanager
def _said_plainly() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise IndexUnavailable(f"The index cannot be read ({exc}); restart the daemon, it is made anew from the log.") from exc


def _reached(db: sqlite3.Connection) -> Position:
    row = db.execute("SELECT position FROM reached").fetchone()
    return Position(row[0] if row else 0)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
