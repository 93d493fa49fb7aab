"""The tables of the index, their version, and how SQLite is to keep them."""

import contextlib
import sqlite3
from pathlib import Path

from eventlog.searching import INDEXES
from eventlog.searching import SCHEMA as PROMPTS

VERSION = 9
PAGE_BYTES = 8192  # four jobs; twice as much is read and logged for nothing by every commit
BUSY_SECONDS_MAX = 0.1  # every commit waits for this: what somebody else holds locked is written with the next one
# Checkpoints belong into idle moments: one made by a commit stalls the writer by up to 370 ms. This many pages
# (64 MiB) are only the bound for a daemon that is never idle.
CHECKPOINT_PAGES = 8192

SCHEMA = """
CREATE TABLE reached (one INTEGER PRIMARY KEY, offset INTEGER NOT NULL, position INTEGER NOT NULL, hash TEXT NOT NULL);
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
    body BLOB NOT NULL                    -- the whole job, JSON, without what is as by default
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
AS_USUAL = (
    "PRAGMA cache_size = -2000",  # KiB; SQLite's own
    "PRAGMA shrink_memory",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}",
)
VERSIONED = f"PRAGMA user_version = {VERSION}"


def connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    db = sqlite3.connect(path, timeout=BUSY_SECONDS_MAX, isolation_level=None, check_same_thread=False)
    try:
        is_new = db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != (0 if is_new else VERSION):
            raise sqlite3.DatabaseError(f"version {version} instead of {VERSION}")
        for setting in (f"PRAGMA page_size = {PAGE_BYTES}", *AS_USUAL):
            db.execute(setting).fetchall()
        if is_new:
            db.executescript(f"BEGIN; {SCHEMA} {PROMPTS} {VERSIONED}; COMMIT;")
            with contextlib.suppress(sqlite3.OperationalError):  # an SQLite without trigrams: every search scans
                db.executescript(f"BEGIN; {INDEXES} COMMIT;")
    except sqlite3.Error:
        db.close()
        raise
    return db


def remove(path: Path) -> None:
    """With its companions: a stale -wal beside a new file is damage."""
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        name.unlink(missing_ok=True)
