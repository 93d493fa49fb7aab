"""The history that openai-gpt-image-mcp-server left behind: its SQLite database, read and never written. Blocking.

Rule: nothing beside or in the old file changes, not even when its program runs at the same time. A database that
nobody writes to is read as immutable, because SQLite would otherwise leave a `-wal` and a `-shm` beside it; that
nobody did is looked at again behind every few rows. One with a write-ahead log or a journal beside it is read with
SQLite's own locks.

What the old program told is believed only where it can be true: everything else is left out, or the row is
`Unusable` with a sentence. Its parameters hold whole pictures in base64; only the model's name is taken from them.
"""

import contextlib
import os
import re
import sqlite3
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, cast, get_args

import msgspec

from eventlog.values import ImageFile, ImageRequest, JobId, MicroUSD, Sha256, Tool, Usage, digest
from tools import pictures
from tools.errors import FileFailed
from tools.failures import UNREADABLE

SOURCE = "openai-gpt-image-mcp-server"
BUSY_SECONDS = 0.5  # somebody waits for us; a healthy writer is done in milliseconds
FILE_BYTES_MAX = 64 * 1024 * 1024  # twice the largest picture that the API draws; more is not read into memory
PROMPT_CHARACTERS_MAX = 500_000  # what fits on a line of the log whatever its letters; the API took far less
PATHS_MAX = 100  # the API draws ten at once
PATH_CHARACTERS_MAX = 4096
WORD_CHARACTERS_MAX = 64  # of a model, a size, a quality, a format
COUNT_MAX = 100
TOKENS_MAX = 1_000_000_000  # beyond, and beyond a million dollars, it is not a count of one picture any more
CLAIMED_DOLLARS_MAX = 1_000_000
LOOK_AGAIN_ROWS = 50

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FIRST_COLUMNS = (
    "uuid",
    "created_at",
    "tool_name",
    "prompt",
    "parameters",
    "output_paths",
    "sample_count",
    "size",
    "quality",
    "output_format",
)
_LATER_COLUMNS = ("input_tokens", "output_tokens", "total_tokens", "estimated_cost")
_DAMAGED = sqlite3.SQLITE_CORRUPT


class OldGeneration(NamedTuple):
    """`uuid` is lower-case. `created_at` in UTC. `claimed` is what the old program believed it cost.

    `paths` stand as the old program wrote them, in the order of its pictures; nobody has looked for the files yet.
    """

    uuid: JobId
    created_at: datetime
    request: ImageRequest
    prompt: str
    paths: tuple[str, ...]
    usage: Usage | None
    claimed: MicroUSD | None


class Unusable(NamedTuple):
    """A row that cannot be taken over. `row` is its uuid, or its number where it has none."""

    row: str
    sentence: str


class _No(Exception):
    """This row is unusable; the sentence says why."""


class _Parameters(msgspec.Struct):
    model: object = None


def read(path: Path) -> Generator[OldGeneration | Unusable, None, None]:
    """Every generation in the database, oldest first.

    Raises:
        FileFailed: it is not there, not such a database, locked, damaged throughout, or it was changed meanwhile.
    """
    with _opened(path) as (db, look_again):
        known = {name for _, name, *_ in db.execute("PRAGMA table_info(history)")}
        missing = [name for name in _FIRST_COLUMNS if name not in known]
        if missing:
            lacks = "table called history" if not known else f"column {missing[0]} in its table history"
            raise FileFailed(f"{path} is not a history of {SOURCE}: it has no {lacks}.", code="io_error")
        columns = ", ".join(name if name in known else f"NULL AS {name}" for name in (*_FIRST_COLUMNS, *_LATER_COLUMNS))
        db.execute("BEGIN")  # what is read later is as it was now
        # Numbers first: rows are wide, and a page that is damaged costs only the rows on it.
        rowids = [rowid for (rowid,) in db.execute("SELECT rowid FROM history ORDER BY created_at, rowid")]
        look_again()
        for start in range(0, len(rowids), LOOK_AGAIN_ROWS):
            some = [_row(db, columns, rowid) for rowid in rowids[start : start + LOOK_AGAIN_ROWS]]
            look_again()
            yield from some


def uuids(path: Path) -> list[str]:
    """Those of all rows that have one, in no order: cheap, answered from SQLite's index of them.

    Raises:
        FileFailed: as `read`.
    """
    with _opened(path) as (db, look_again):
        found = [uuid.lower() for (uuid,) in db.execute("SELECT uuid FROM history") if isinstance(uuid, str)]
        look_again()
    return [uuid for uuid in found if _UUID.fullmatch(uuid)]


def state(path: Path) -> object | None:
    """Something that is equal as long as nobody has written to the database; None if there is none."""
    try:
        return _state(Path(os.path.realpath(path)))
    except (OSError, ValueError, FileFailed):
        return None


def picture_at(path: str) -> ImageFile | None:
    """The picture that is there now, hashed and measured. None for what is no whole picture, a link, or not there."""
    if not path.startswith("/"):
        return None  # nobody knows any more what it was relative to
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None  # before it is opened: opening is enough to wake some devices
        data = _content(path)
        measured = None if data is None else pictures.measure(data)
    except (OSError, ValueError, pictures.BadPicture):  # ValueError: a NUL, or what no file name can hold
        return None
    if data is None or measured is None:
        return None
    sha256 = digest(data)
    return ImageFile(sha256=sha256, size_bytes=len(data), original=sha256, **measured._asdict())


def unchanged(path: str, sha256: Sha256) -> bytes:
    """The file that was imported, for its owner, if it is still the same. Blocking.

    Raises:
        FileFailed: it is gone, or another one is there.
    """
    try:
        data = _content(path) if path.startswith("/") and stat.S_ISREG(os.lstat(path).st_mode) else None
    except (OSError, ValueError) as exc:
        raise FileFailed(f"The imported file {path} cannot be read any more.", code="not_there") from exc
    if data is None or digest(data) != sha256:
        raise FileFailed(f"The imported file {path} is not what it was when it was imported.", code="not_there")
    return data


def _content(path: str) -> bytes | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_BYTES_MAX:
            return None
        return file.read(FILE_BYTES_MAX)  # one that grows meanwhile is cut off, and no whole picture


def _row(db: sqlite3.Connection, columns: str, rowid: int) -> OldGeneration | Unusable:
    name = f"row {rowid}"
    try:
        row = db.execute(f"SELECT {columns} FROM history WHERE rowid = ?", (rowid,)).fetchone()
    except sqlite3.DatabaseError as exc:
        if _primary(exc) != _DAMAGED:
            raise
        return Unusable(name, "the database is damaged there")
    if row is None:
        return Unusable(name, "the database is damaged there: its index names a row that is gone")
    told = dict(zip((*_FIRST_COLUMNS, *_LATER_COLUMNS), row, strict=True))
    try:
        name = uuid = _uuid(told["uuid"])
        return OldGeneration(
            uuid=uuid,
            created_at=_moment(told["created_at"]),
            request=_request(told),
            prompt=_prompt(told["prompt"]),
            paths=_paths(told["output_paths"]),
            usage=_usage(told),
            claimed=_claimed(told["estimated_cost"]),
        )
    except _No as no:
        return Unusable(name, str(no))


def _uuid(told: object) -> JobId:
    text = told.lower() if isinstance(told, str) else ""
    if not _UUID.fullmatch(text):
        raise _No(f"its uuid is {_shown(told)}, which is not one")
    return JobId(text)


def _moment(told: object) -> datetime:
    """The old program wrote UTC; what has no zone is taken for it."""
    try:
        moment = datetime.fromisoformat(told if isinstance(told, str) else "")
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _No(f"its created_at is {_shown(told)}, which is not a time") from None


def _request(told: dict[str, object]) -> ImageRequest:
    tool = told["tool_name"]
    if tool not in get_args(Tool):
        raise _No(f"its tool_name is {_shown(tool)}, which {SOURCE} never had")
    return ImageRequest(
        tool=cast(Tool, tool),
        model=_word(_parameters(told["parameters"]).model, "unknown"),
        count=_whole(told["sample_count"], 1, COUNT_MAX) or 1,
        size=_word(told["size"], "auto"),
        quality=_word(told["quality"], "auto"),
        output_format=_word(told["output_format"], "png"),
    )


def _parameters(told: object) -> _Parameters:
    try:
        return msgspec.json.decode(told, type=_Parameters) if isinstance(told, str) else _Parameters()
    except UNREADABLE:
        return _Parameters()


def _word(told: object, otherwise: str) -> str:
    """A name that goes into a fact: bounded and printable."""
    text = told.strip()[:WORD_CHARACTERS_MAX] if isinstance(told, str) else ""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text) or otherwise


def _prompt(told: object) -> str:
    if told is None:
        return ""
    if not isinstance(told, str):
        raise _No("its prompt is not text")
    if len(told) > PROMPT_CHARACTERS_MAX:
        raise _No(f"its prompt has {len(told):,} characters; at most {PROMPT_CHARACTERS_MAX:,} are taken over")
    return told


def _paths(told: object) -> tuple[str, ...]:
    if told is None:
        return ()
    try:
        paths = msgspec.json.decode(told if isinstance(told, str) else "", type=tuple[str, ...] | None) or ()
    except UNREADABLE:
        raise _No(f"its output_paths are {_shown(told)}, which is not a list of file names") from None
    if len(paths) > PATHS_MAX or any(len(path) > PATH_CHARACTERS_MAX for path in paths):
        raise _No(f"its output_paths are more than {PATHS_MAX}, or longer than {PATH_CHARACTERS_MAX:,} characters")
    return paths


def _usage(told: dict[str, object]) -> Usage | None:
    taken, given = (_whole(told[name], 0, TOKENS_MAX) for name in ("input_tokens", "output_tokens"))
    if taken is None or given is None:
        return None
    total = _whole(told["total_tokens"], 0, TOKENS_MAX)
    return Usage(input_tokens=taken, output_tokens=given, total_tokens=taken + given if total is None else total)


def _claimed(told: object) -> MicroUSD | None:
    if not isinstance(told, int | float) or not 0 <= told <= CLAIMED_DOLLARS_MAX:  # NaN is never between
        return None
    return MicroUSD(round(told * 1_000_000))


def _whole(told: object, low: int, high: int) -> int | None:
    """SQLite gives JavaScript's numbers back as floats where the column does not say INTEGER."""
    if not isinstance(told, int | float) or not low <= told <= high or told != int(told):
        return None
    return int(told)


def _shown(told: object) -> str:
    text = repr(told)
    return text if len(text) <= WORD_CHARACTERS_MAX else text[:WORD_CHARACTERS_MAX] + "…"


@contextmanager
def _opened(path: Path) -> Iterator[tuple[sqlite3.Connection, Callable[[], None]]]:
    """The database, and a function that fails if what was read up to now may be neither the old nor the new."""
    with _said_plainly(path):
        real = Path(os.path.realpath(path))  # SQLite looks for the companions beside the file, not beside the link
        seen = _state(real)
        alone = not any(seen.companions)

        def look_again() -> None:
            if alone and _state(real) != seen:
                raise FileFailed(f"{path} was written to while it was read; ask again.", code="io_error")

        db = sqlite3.connect(
            f"{real.as_uri()}?mode=ro{'&immutable=1' if alone else ''}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        with contextlib.closing(db):
            db.text_factory = _text
            _insist_on_a_plain_table(db, path)
            yield db, look_again


def _insist_on_a_plain_table(db: sqlite3.Connection, path: Path) -> None:
    """A view, or a computed column, is a program of whoever made the file, and may never end."""
    db.execute("PRAGMA trusted_schema = OFF")
    kind = db.execute("SELECT type FROM sqlite_schema WHERE name = 'history'").fetchone()
    hidden = [name for _, name, *_, hidden in db.execute("PRAGMA table_xinfo(history)") if hidden] if kind else []
    if kind is not None and (kind[0] not in ("table", b"table") or hidden):
        raise FileFailed(f"{path} is not a history of {SOURCE}: its history is not a plain table.", code="io_error")


class _State(NamedTuple):
    """`companions` are the sizes of what SQLite keeps beside a database that somebody writes to."""

    inode: int
    changed_ns: int
    size_bytes: int
    companions: tuple[int, ...]


def _state(real: Path) -> _State:
    found = real.stat()
    if not stat.S_ISREG(found.st_mode):
        raise FileFailed(f"{real} is not a file.", code="io_error")
    companions = (real.with_name(real.name + ending) for ending in ("-wal", "-journal"))
    return _State(found.st_ino, found.st_mtime_ns, found.st_size, tuple(_size_bytes(companion) for companion in companions))


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _primary(exc: sqlite3.Error) -> int:
    """The kind of trouble, without SQLite's finer distinctions. 0: Python's own."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF


_TROUBLE = {
    sqlite3.SQLITE_NOTADB: ("is not an SQLite database", "io_error"),
    _DAMAGED: ("is damaged and cannot be read; the sqlite3 command's .recover may save what is left", "io_error"),
    sqlite3.SQLITE_BUSY: ("is locked by another program; ask again in a moment", "io_error"),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened; see to the permissions of the file and its folder, or copy it together with its -wal file to a "
        "folder of your own and import the copy",
        "not_permitted",
    ),
}
_TROUBLE[sqlite3.SQLITE_READONLY] = _TROUBLE[sqlite3.SQLITE_CANTOPEN]  # a journal that only a writer can put right


@contextmanager
def _said_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        what, code = _TROUBLE.get(_primary(exc), (f"cannot be read as a history of {SOURCE} ({exc})", "io_error"))
        raise FileFailed(f"{path} {what}.", code=code) from exc
    except FileNotFoundError as exc:
        raise FileFailed(f"There is no file {path}.", code="not_there") from exc
    except PermissionError as exc:
        raise FileFailed(f"{path} may not be read; see to its permissions.", code="not_permitted") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise FileFailed(f"{path} cannot be read ({exc}).", code="io_error") from exc
