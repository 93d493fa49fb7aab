"""What a home need not keep for ever: the log's beginning, moved out of it, and blobs that nothing names.

Rule: only while no daemon serves the home; both take the log's own lock. Nothing that was paid for is removed: what a fact or
a spooled reply names stays in the store, and the log's beginning is removed after it has been read again where it went.
Plain blocking functions that return values; nothing prints.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from daemon import results, starting
from daemon.config import Places
from daemon.errors import Refused
from daemon.version import VERSION
from eventlog import archiving, audit
from eventlog.archiving import Archive, NotArchived, find_cut, moved_by, remove_archived, standing
from eventlog.disk import Disk
from eventlog.errors import LogLocked
from eventlog.events import AttemptStarted, FactOfJob, ReplyReceived
from eventlog.forgetting import stored_by
from eventlog.index import Index
from eventlog.log import EventLog
from eventlog.segments import beginning, read_log
from eventlog.values import ArchivedSegment, Blob, JobId, Position, Sha256
from tools.errors import FileFailed
from tools.store import Store


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """`commits` up to `up_to` were moved to `archive`, or would be. None were: `up_to` is what was archived before."""

    archive: str
    up_to: Position
    up_to_time: str
    commits: int
    bytes: int
    segments: tuple[ArchivedSegment, ...]
    moved: bool
    message: str


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What nothing names and is gone, or would be. `kept` says why something stays that could go."""

    blobs: tuple[Blob, ...]
    spooled: tuple[str, ...]
    bytes: int
    removed: bool
    kept: tuple[str, ...]
    message: str


def archive(home: Path, before: datetime, to: Path | None, *, dry_run: bool, now: datetime) -> Archived:
    """Move the commits that are older than `before` out of the log, as far as whole syncs go.

    Raises:
        Refused: there is no log, a daemon serves it, it is not sound, or `before` has not come yet; nothing was changed.
        EventLogError, LogFull, IndexUnavailable, OSError: the log reads as before, or as after; asking again finishes it.
    """
    places = places_of(home)
    if before > now:
        raise Refused("--before is a moment that has not come yet.", code="bad_arguments", argument="before")
    target = home / "archive" if to is None else to
    with _held(places) as log:
        fault = audit.verify(places.events).fault
        if fault is not None:
            raise Refused(f"The log is not sound, so nothing is moved: {fault.sentence}", code="log_damaged")
        cut = find_cut(places.events, before)
        if cut is None or cut.commits == 0:
            return _nothing_moved(places, log, target, dry_run=dry_run)
        if dry_run:
            return _told(target, cut, moved_by(places.events, cut), moved=False)
        reading = starting.Reading(places.events)
        index, _ = starting.read(places, log, reading)
        with closing(index):
            _insist_on_nothing_to_forget(index)
            with standing(places.events, cut) as stood:
                try:
                    fact = Archive(target).move(log, cut, stood, lambda located: index.fold([located]))
                except NotArchived as exc:
                    raise Refused(f"{exc} Name another folder with --to.", code="not_archived", argument="to") from exc
        return _told(target, cut, fact.segments, moved=True)


def collect(home: Path, *, dry_run: bool) -> Collected:
    """Remove the blobs that no fact names, and the spooled replies that facts have taken over.

    Raises:
        Refused: there is no log, a daemon serves it, or it is not sound; nothing was changed.
        FileFailed: the store cannot be read or written; what is gone was named by nothing.
    """
    places = places_of(home)
    with _held(places):
        fault = audit.verify(places.events).fault
        if fault is not None:
            raise Refused(f"The log is not sound, so nothing is removed: {fault.sentence}", code="log_damaged")
        named = _named_by(places.events)
        store = Store(places.store, Disk()) if dry_run else Store.open(places.store)
        spooled, spared, kept = _spooled(store, named.answered)
        blobs: tuple[Blob, ...] = ()
        if spared is not None:
            blobs = tuple(blob for blob in store.blobs() if blob.sha256 not in named.blobs and blob.sha256 not in spared)
        if not dry_run:
            for blob in blobs:
                store.remove(blob.sha256)
            for name in spooled:
                store.unspool(name)
    size = sum(blob.size_bytes for blob in blobs)
    what = f"{_counted(len(blobs), 'file')} ({_bytes(size)}) in the store that no fact names, and "
    what += f"{_counted(len(spooled), 'spooled reply', 'spooled replies')} that facts have taken over"
    message = f"There are {what}." if dry_run else f"Removed: {what}."
    return Collected(blobs=blobs, spooled=spooled, bytes=size, removed=not dry_run, kept=kept, message=message)


class Compared(NamedTuple):
    """An archive beside the log that goes on where it ends; `trouble` is empty if they are one log."""

    commits: Position
    trouble: str


def compare(events: Path, archive_path: Path) -> Compared:
    """Whether what was moved to an archive is sound, ends where the log goes on, and is what the stub says of it.

    Raises:
        Refused: there is no archive, or nothing was archived.
        EventLogError: the stub is damaged or too new.
    """
    there = places_of(archive_path).events
    with beginning(events) as stub:
        if stub is None:
            raise Refused("Nothing of this log was archived.", code="nothing_archived", argument="archive")
        found = audit.verify(there)
        if found.fault is not None:
            return Compared(found.head, f"the archive is not sound: {found.fault.sentence}")
        if (found.head, found.head_hash) != (stub.head.position, stub.head.hash):
            return Compared(found.head, f"the archive ends at commit {found.head}, the log goes on behind {stub.head.position}")
        cut = archiving.Cut(found.mark, stub.head.at, stub.head.end, found.commits)
        with standing(there, cut) as stood:
            told = {kept.job.id: archiving.fingerprint(kept) for kept in stub.kept()}
            for kept in stood.kept:
                if told.pop(kept.job.id, None) != archiving.fingerprint(kept):
                    return Compared(found.head, f"the stub says something else of job {kept.job.id} than the archive")
            for job in told:
                return Compared(found.head, f"the stub speaks of job {job}, which the archive does not know")
            if dict(stood.spent.amounts) != dict(stub.spending([]).rows()):
                return Compared(found.head, "the stub says something else of what was spent than the archive")
    return Compared(found.head, "")


def places_of(home: Path) -> Places:
    """
    Raises:
        Refused: there is no log.
    """
    places = Places(home)
    if not any(places.events.glob("*.jsonl")):
        raise Refused(f"There is no event log in {places.events}; name the home of an imaged, or a copy of one.", code="no_log")
    return places


@contextmanager
def _held(places: Places) -> Iterator[EventLog]:
    log = EventLog(places.events, software=VERSION)
    try:
        log.lock()
    except LogLocked as exc:
        raise Refused("A daemon serves this home. Run `imaged stop`, then ask again.", code="daemon_runs") from exc
    with closing(log):
        yield log


def _insist_on_nothing_to_forget(index: Index) -> None:
    if index.forgetting():
        raise Refused(
            "Words are to be forgotten that are not gone yet, so nothing is moved; the next start of imaged removes them.",
            code="forgetting",
        )


def _nothing_moved(places: Places, log: EventLog, target: Path, *, dry_run: bool) -> Archived:
    """What an earlier try has moved and not removed yet is removed now."""
    with beginning(places.events) as stub:
        up_to, at = (Position(0), "") if stub is None else (stub.head.position, results.time(stub.head.at))
    left = 0
    if not dry_run:
        with log.changing() as (disk, directory):
            left = remove_archived(disk, directory)
    message = "Nothing in the log is older; nothing was moved."
    if left:
        message += f" {_counted(left, 'file')} that an earlier try had moved was removed."
    return Archived(
        archive=str(target), up_to=up_to, up_to_time=at, commits=0, bytes=0, segments=(), moved=False, message=message
    )


def _told(target: Path, cut: archiving.Cut, segments: tuple[ArchivedSegment, ...], *, moved: bool) -> Archived:
    size, at = sum(part.size_bytes for part in segments), results.time(cut.at)
    verb = "Moved" if moved else "Would move"
    message = (
        f"{verb} {_counted(cut.commits, 'commit')} ({_bytes(size)}), up to position {cut.mark.position} of {at}, to "
        f"{target}. History still lists their jobs, and the store keeps their pictures."
    )
    return Archived(
        archive=str(target),
        up_to=cut.mark.position,
        up_to_time=at,
        commits=cut.commits,
        bytes=size,
        segments=segments,
        moved=moved,
        message=message,
    )


class _Named(NamedTuple):
    """`answered` are the names under which replies were spooled that facts speak of."""

    blobs: set[Sha256]
    answered: set[str]


def _named_by(events: Path) -> _Named:
    blobs: set[Sha256] = set()
    answered: set[str] = set()
    attempts: dict[tuple[JobId, int], str] = {}
    with beginning(events) as stub:
        for kept in () if stub is None else stub.kept():
            blobs.update(kept.blobs)
            attempts[kept.job.id, kept.job.attempts] = kept.job.client_request_id
            if kept.job.pictures and kept.job.attempts:
                answered.add(kept.job.client_request_id)
    for commit, _, _ in read_log(events, None):
        for event in commit.events:
            if isinstance(event, FactOfJob):
                blobs.update(stored_by(event))
            if isinstance(event, AttemptStarted):
                attempts[event.job, event.attempt] = event.client_request_id
            elif isinstance(event, ReplyReceived):
                answered.add(attempts[event.job, event.attempt])
    return _Named(blobs, answered)


def _spooled(store: Store, answered: set[str]) -> tuple[tuple[str, ...], set[Sha256] | None, tuple[str, ...]]:
    """Which may go, and which blobs those name that may not; None if that cannot be known. Then why something stays."""
    gone: list[str] = []
    spared: set[Sha256] | None = set()
    kept: list[str] = []
    for name in store.spooled_names():
        if name in answered:
            gone.append(name)
            continue
        try:
            reply = msgspec.json.decode(store.spooled(name) or b"", type=ReplyReceived)
        except (msgspec.DecodeError, FileFailed) as exc:
            kept.append(f"spooled reply {name}: it cannot be read ({exc}), so nothing is removed from the store")
            spared = None
            continue
        kept.append(f"spooled reply {name}: no fact speaks of it yet, so its pictures stay")
        if spared is not None:
            spared.update(picture.sha256 for picture in reply.pictures)
    return tuple(gone), spared, tuple(kept)


def _bytes(size: int) -> str:
    return f"{size:,} bytes" if size < 100_000 else f"{size / 1e6:,.1f} MB"


def _counted(number: int, one: str, more: str = "") -> str:
    return f"1 {one}" if number == 1 else f"{number:,} {more or one + 's'}"
