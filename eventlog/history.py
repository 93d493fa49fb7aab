"""What is asked of the index: pages, filters and substring search, on a read connection of its own."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from eventlog.errors import IndexUnavailable
from eventlog.index import TRIGRAM_CHARACTERS_MIN, folded, has_trigrams, instant
from eventlog.jobs import Job
from eventlog.values import JobId, JobState, Position

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
    """Newest first. `total` counts all that fits, `position` is the commit that the index had reached."""

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
                    f"SELECT body FROM job {fits.where} ORDER BY number DESC LIMIT ? OFFSET ?",
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
