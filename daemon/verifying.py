"""What a home can prove of itself: chain, transitions, blobs, saved files, seals. For the command line.

Rule: nothing here takes a lock or changes a file of the home, so all of it works beside a running daemon and on a copy.
Plain blocking functions that return values; nothing prints.
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from daemon.errors import Refused
from daemon.retention import compare, places_of
from eventlog import audit
from eventlog.audit import Fault, Forgetting
from eventlog.disk import Disk
from eventlog.errors import EventLogError
from eventlog.events import Event, FactOfJob, HistoryImported, JobCompleted
from eventlog.forgetting import stored_by
from eventlog.segments import Located, beginning
from eventlog.values import JobId, Position, Sha256, Words
from tools.errors import FileFailed
from tools.store import Store

FileState = Literal["unchanged", "changed", "gone"]
Blobs = dict[Sha256, tuple[Position, JobId]]


class Seal(msgspec.Struct, frozen=True):
    """Kept elsewhere, it proves later that the log was not shortened or rewritten. `at` is the time of that commit."""

    position: Position
    head_hash: Sha256
    at: datetime


class BlobFinding(msgspec.Struct, frozen=True):
    """What commit `position` put into the store, and why it is not there as it was."""

    position: Position
    job: JobId
    sha256: Sha256
    sentence: str


class FileFinding(msgspec.Struct, frozen=True):
    """A file that commit `position` says was saved. It is its owner's to change or remove, so this is no fault."""

    position: Position
    job: JobId
    path: str
    state: FileState


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`fault` is the first one of the chain, with its position and byte; `broken_seal` says why the seal does not hold.
    Commits up to `archived` were moved out; `broken_archive` says why what was moved is not what the log speaks of.

    `files` are those that are not as they were saved; `forgotten` what was removed, when, and what is not gone yet.
    """

    commits: int
    segments: int
    head_hash: Sha256
    unfinished_bytes: int
    fault: Fault | None
    forgotten: tuple[Forgetting, ...]
    broken_seal: str
    archived: Position
    broken_archive: str
    blobs_checked: int
    blobs: tuple[BlobFinding, ...]
    files_unchanged: int
    files: tuple[FileFinding, ...]

    @property
    def is_sound(self) -> bool:
        return self.fault is None and not self.broken_seal and not self.broken_archive and not self.blobs


def verify(home: Path, against: Seal | None = None, archive: Path | None = None) -> Verdict:
    """Every hash, transition, blob and saved file. After a fault of the chain, what stands before it. Of what was archived,
    what its stub says and, with `archive`, what was moved there.

    Raises:
        Refused: there is no log.
        OSError: the disk cannot be read.
    """
    places = places_of(home)
    found = audit.verify(places.events)
    files: list[FileFinding] = []
    blobs: dict[Sha256, tuple[Position, JobId]] = {}
    _look_at_archived(places.events, found, files, blobs)
    _look_at_log(places.events, found, files, blobs)
    damaged = tuple(_damaged_blobs(Store(places.store, Disk()), blobs))
    return Verdict(
        commits=found.commits,
        segments=found.segments,
        head_hash=found.head_hash,
        unfinished_bytes=found.unfinished_bytes,
        fault=found.fault,
        forgotten=found.forgotten,
        broken_seal="" if against is None else _broken_seal(against, places.events, found, archive),
        archived=found.archived,
        broken_archive="" if archive is None else compare(places.events, archive).trouble,
        blobs_checked=len(blobs),
        blobs=damaged,
        files_unchanged=sum(one.state == "unchanged" for one in files),
        files=tuple(one for one in files if one.state != "unchanged"),
    )


def seal(home: Path) -> Seal:
    """The head of a sound log.

    Raises:
        Refused: there is no log, or it is not sound.
    """
    places = places_of(home)
    found = audit.verify(places.events)
    if found.fault is not None:
        raise Refused(f"The log is not sound, so it is not sealed: {found.fault.sentence}", code="log_damaged")
    at = None
    for commit, _, _ in _sound_commits(places.events, found.head):
        at = commit.at
    if at is None:
        raise Refused(f"The log in {places.events} is empty; there is nothing to seal.", code="no_log")
    return Seal(found.head, found.head_hash, at)


def _sound_commits(events: Path, head: Position) -> Iterator[Located]:
    """Those that were found sound; a daemon may have written more since, or the fault may stand behind them."""
    try:
        yield from audit.commits(events, head)
    except EventLogError:
        return


def _look_at_archived(events: Path, found: audit.Verification, files: list[FileFinding], blobs: Blobs) -> None:
    """As far as the stub tells, if it is sound."""
    if not found.archived or found.head < found.archived:
        return
    forgotten = {one.job for one in found.forgotten}
    with beginning(events) as stub:
        for job, named, _ in () if stub is None else stub.kept():
            places = [(image.path, image.sha256) for image in job.images if image.path is not None]
            files += [FileFinding(job.position, job.id, path, _state(path, sha256)) for path, sha256 in places]
            if job.id not in forgotten and job.forgotten_at is None:
                for sha256 in named:
                    blobs.setdefault(sha256, (job.position, job.id))


def _look_at_log(events: Path, found: audit.Verification, files: list[FileFinding], blobs: Blobs) -> None:
    forgotten = {one.job for one in found.forgotten}
    for commit, _, _ in _sound_commits(events, found.head):
        for event in commit.events:
            if not isinstance(event, FactOfJob):
                continue
            files += _files(event, commit.words or Words(salt=""), commit.position)
            if event.job not in forgotten:
                for sha256 in stored_by(event):
                    blobs.setdefault(sha256, (commit.position, event.job))


def _broken_seal(against: Seal, events: Path, found: audit.Verification, archive: Path | None) -> str:
    archived = against.position <= found.archived
    if archived and archive is None:
        return f"Commit {against.position} was sealed, and is archived: name the archive with --archive."
    where = archive / "events" if archived and archive is not None else events
    sealed = [mark.hash for _, mark, _ in _sound_commits(where, against.position) if mark.position == against.position]
    if sealed == [against.head_hash]:
        return ""
    if not sealed:
        return f"The log ends at commit {found.head}, but commit {against.position} was sealed: what followed was cut off."
    return f"Commit {against.position} is not the one that was sealed: the log was written anew up to there, or is another."


def _damaged_blobs(store: Store, blobs: Blobs) -> Iterator[BlobFinding]:
    for sha256, (position, job) in blobs.items():
        try:
            store.get(sha256)
        except FileFailed as exc:
            yield BlobFinding(position, job, sha256, str(exc))


def _files(event: Event, words: Words, position: Position) -> Iterator[FileFinding]:
    if isinstance(event, JobCompleted | HistoryImported):
        for image, path in zip(event.images, words.paths, strict=False):
            if image is not None:
                yield FileFinding(position, event.job, path, _state(path, image.sha256))


def _state(path: str, sha256: Sha256) -> FileState:
    try:
        with Path(path).open("rb") as file:
            return "unchanged" if hashlib.file_digest(file, "sha256").hexdigest() == sha256 else "changed"
    except FileNotFoundError:
        return "gone"
    except (OSError, ValueError):  # a folder, or nothing that may be read: not what was saved
        return "changed"
