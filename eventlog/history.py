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
from eventlog.index import TRIGRAM_CHARACTERS_MIN, folded, has_trigrams, instant
from eventlog.jobs import Job
from eventlog.values import JobId, JobState, Position, Sha256

LAST_CHARACTER = "\U0010ffff"  # sorts behind whatever may follow a prefix
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
    """Newest first by the time of asking. `total` counts all that fits, `position` is the commit that the index had reached."""

    jobs: tuple[Job, ...]
    total: int
    position: Position


class _Filter:
    """A WHERE clause that grows; values never stand in the text."""

    def __init__(self) -> None:
        self._clauses: list[str] = []
        self.values: list[object] = []

    def add(self, clause: str, *values: object) -> None:
        self._clauses.append(clause)
        self.values += values

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
                self._has_trigrams = has_trigrams(db)
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
        fits.add("state = 'completed'")
        if query.tool is not None:
            fits.add("tool = ?", query.tool)
        if query.model is not None:
            fits.add("model = ?", query.model)
        if query.since is not None:
            fits.add("requested_at >= ?", instant(query.since))
        if query.until is not None:
            fits.add("requested_at < ?", instant(query.until))
        if query.as_of is not None:
            fits.add("position <= ?", query.as_of)
        if query.text:
            self._add_search(fits, folded(query.text))
        return self._page(fits, query.limit, query.offset)

    def jobs(self, query: JobQuery) -> Page:
        """Jobs of every state, or of one.

        Raises:
            IndexUnavailable
        """
        fits = _Filter()
        if query.state is not None:
            fits.add("state = ?", query.state.value)
        if query.tool is not None:
            fits.add("tool = ?", query.tool)
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

    def _add_search(self, fits: _Filter, text: str) -> None:
        """Exactly Python's `in` on the folded prompts. A trigram index cannot answer one or two characters."""
        if not _is_unicode(text):
            fits.add("0")  # no prompt holds it: what is not Unicode cannot be written to the log
            return
        if self._has_trigrams and len(text) >= TRIGRAM_CHARACTERS_MIN and "\0" not in text:
            phrase = '"' + text.replace('"', '""') + '"'
            fits.add("number IN (SELECT rowid FROM prompt WHERE prompt MATCH ?)", phrase)
        fits.add("instr(prompt, ?) > 0", text)

    def _page(self, fits: _Filter, limit: int, offset: int) -> Page:
        with self._reading() as db:
            db.execute("BEGIN")  # rows, total and position from one moment
            try:
                rows = db.execute(
                    f"SELECT body FROM job {fits.where} ORDER BY requested_at DESC, number DESC LIMIT ? OFFSET ?",
                    (*fits.values, limit, offset),
                ).fetchall()
                (total,) = db.execute(f"SELECT count(*) FROM job {fits.where}", fits.values).fetchone()
                reached = _reached(db)
            finally:
                db.execute("ROLLBACK")
            return Page(tuple(_decode_job(body) for (body,) in rows), total, reached)

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
