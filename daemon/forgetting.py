"""Forgetting a generation: its words leave the disk, the fact that it was drawn and paid for stays.

The order that a crash cannot spoil: `WordsForgotten` durable and, with it, noted in the index as not carried out →
the owner's files, if that was asked → store and spool → the index → the log's segments → the note taken away. Paths
are words, so what needs them goes first. What is noted at a start is carried out before the doors open; after the
index was made anew that is everything that was ever forgotten, most of which is gone already.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import trio
from msgspec import Meta

from daemon import decisions, ordering, questions, results
from daemon.arguments import Arguments
from daemon.errors import Refused
from daemon.house import House
from daemon.results import Answer, Result
from daemon.session import Caller
from eventlog.archiving import forget_archived
from eventlog.disk import Disk
from eventlog.errors import IndexUnavailable, LogFull
from eventlog.events import WordsForgotten
from eventlog.forgetting import Traces, find
from eventlog.jobs import Job
from eventlog.segments import Mark
from eventlog.values import JobId, Sha256, digest
from tools import xmp
from tools.errors import FileFailed
from tools.store import Store

logger = logging.getLogger(__name__)


class Forget(Arguments, frozen=True, kw_only=True):
    uuid: Annotated[str, Meta(min_length=1, max_length=64, description="The generation's UUID, which is its job's id.")]
    files: Annotated[
        bool, Meta(description="Also remove the saved pictures and their sidecars, as far as nobody has changed them.")
    ] = False


class Forgotten(Result, frozen=True, kw_only=True):
    """`words` counts the commits whose words were removed, `kept` says what was not removed and why."""

    uuid: str
    forgotten_at: str
    words: int
    blobs_removed: int
    files_removed: tuple[str, ...]
    kept: tuple[str, ...]
    message: str


class Removed(NamedTuple):
    blobs: int
    files: tuple[str, ...]
    kept: tuple[str, ...]


# The last is what a batch file's nameless pictures get, without its number.
NAMES_GIVEN = frozenset({*ordering.DEFAULT_NAMES.values(), "batch.png"})
NOTHING_REMOVED = Removed(0, (), ())


async def forget(house: House, caller: Caller, asked: Forget) -> Answer:
    """Once it is recorded it is carried out, now or at the next start, whether or not the asker stays."""
    job = await questions.find(house, asked.uuid, "uuid")
    decisions.insist_on_over(job)
    house.untold.tell(job)
    await house.ledger.durable(house.ledger.position)  # requests ride along unhurried, and may repeat the words
    found = await house.run_blocking(partial(find, house.places.events, {job.id}, house.disk, given=NAMES_GIVEN))
    wanted = WordsForgotten(job=job.id, positions=tuple(line.position for line in found.lines), files=asked.files)
    new = bool(found.lines) or job.forgotten_at is None
    # Shielded: a forgotten word stays readable until all of it is done. Bounded by writing the index and some segments.
    with trio.CancelScope(shield=True):
        if new:
            await house.ledger.record(decisions.forget_words(wanted))
        removed = NOTHING_REMOVED
        if new or await _unfinished(house, job.id):
            removed = await _carry_out_or_say_why(house, found, {job.id} if asked.files else ())
    told = await house.find_job(job.id)
    at = told.forgotten_at if told is not None and told.forgotten_at is not None else house.now()
    if asked.files and not any(image.path for one in found.jobs for image in one.images):
        removed = removed._replace(kept=(*removed.kept, "saved pictures: where they are is forgotten or was never said"))
    return Answer(_result(job.id, results.time(at), len(found.lines), removed, new=new))


async def finish(house: House) -> None:
    """What a crash or a failure left to do. Before the doors open; a disk that refuses must not keep them shut."""
    unfinished = await house.ledger.between_writes(house.index.forgetting)
    if not unfinished:
        return
    jobs = {event.job for event in unfinished}
    recorded = {position for event in unfinished for position in event.positions}
    found = await house.run_blocking(partial(find, house.places.events, jobs, house.disk, given=NAMES_GIVEN))
    found = found._replace(lines=tuple(line for line in found.lines if line.position in recorded))
    try:
        removed = await _carry_out(house, found, {event.job for event in unfinished if event.files})
    except (LogFull, IndexUnavailable) as exc:
        logger.warning("what is to be forgotten is not gone yet", extra={"why": str(exc), "jobs": len(jobs)})
        return
    logger.info("forgetting is finished", extra={"jobs": len(jobs), "words": len(found.lines), "kept": len(removed.kept)})


async def _unfinished(house: House, job_id: JobId) -> bool:
    return any(event.job == job_id for event in await house.ledger.between_writes(house.index.forgetting))


async def _carry_out_or_say_why(house: House, found: Traces, with_files: Collection[JobId]) -> Removed:
    try:
        return await _carry_out(house, found, with_files)
    except (LogFull, IndexUnavailable) as exc:
        raise Refused(
            f"That it is to be forgotten is recorded, but not all of it is gone yet: {exc} Then ask again, or start the "
            "daemon anew.",
            code="no_space" if isinstance(exc, LogFull) else "index_unavailable",
        ) from exc


async def _carry_out(house: House, found: Traces, with_files: Collection[JobId]) -> Removed:
    """
    Raises:
        LogFull, IndexUnavailable: some of it is still there; it can be asked for again.
    """
    run = house.run_blocking
    removed = await run(partial(_remove_files, house.disk, [job for job in found.jobs if job.id in with_files]))
    async with house.keeping:
        in_use = {digest for job in house.ledger.board if not job.state.is_over for digest in _pictures(job)}
        blobs, trouble = await run(partial(_remove_blobs, house.store, found, in_use))
    await house.ledger.between_writes(house.index.scrub)
    left: tuple[Mark, ...] = await house.ledger.between_writes(partial(house.log.forget, found.lines))
    while left:
        left = await house.ledger.between_writes(partial(house.log.forget, left))
    if found.archived:
        await house.ledger.between_writes(partial(forget_archived, house.log, found.archived))
    if not trouble:
        await house.ledger.between_writes(partial(house.index.forgot, {job.id for job in found.jobs}))
    shared = tuple(f"store: {sha256} is also another generation's" for sha256 in sorted(found.shared | in_use & found.blobs))
    moved = ("archived segments: its words stand there still; remove them from wherever they were moved to",)
    return removed._replace(blobs=blobs, kept=(*removed.kept, *shared, *trouble, *(moved if found.archived else ())))


def _pictures(job: Job) -> set[Sha256]:
    wanted = (*job.request.sources, job.request.mask, job.request.markup, *job.pictures, *job.previews)
    return {picture.sha256 for picture in wanted if picture is not None}


def _remove_blobs(store: Store, found: Traces, in_use: Collection[Sha256]) -> tuple[int, tuple[str, ...]]:
    """Blocking. How many are gone now, and what could not be removed."""
    blobs, trouble = 0, []
    for sha256 in sorted(found.blobs.difference(in_use)):
        try:
            blobs += store.remove(sha256)
        except FileFailed as exc:
            trouble.append(f"store: {exc}")
    for attempt in found.attempts:
        try:
            store.unspool(attempt)
        except FileFailed as exc:
            trouble.append(f"spool: {exc}")
    return blobs, tuple(trouble)


def _remove_files(disk: Disk, jobs: Sequence[Job]) -> Removed:
    """Blocking. What was saved for its owner, as long as it is what was saved."""
    files, kept = [], []
    for job in jobs:
        for image in job.images:
            targets = [(image.path, partial(_is_picture, image.sha256)), (image.sidecar, partial(_is_sidecar, job.id))]
            for path, ours in targets:
                if path is None:
                    continue
                why = _remove_file(disk, path, ours)
                if why:
                    kept.append(f"{path}: {why}")
                else:
                    files.append(path)
    return Removed(0, tuple(files), tuple(kept))


def _is_picture(sha256: Sha256, data: bytes) -> bool:
    return digest(data) == sha256


def _is_sidecar(job_id: JobId, data: bytes) -> bool:
    """Its digest is not recorded: it is ours as long as it names the job, or says nothing at all."""
    return job_id.encode() in data or data == xmp.packet(())


def _remove_file(disk: Disk, path: str, ours: Callable[[bytes], bool]) -> str:
    """Why it was not removed; empty if it is gone."""
    place = Path(path)
    try:
        folder = disk.open_directory(place.parent)
        try:
            file = disk.open(folder, place.name)
            try:
                is_ours = ours(disk.pread(file, disk.size(file), 0))
            finally:
                disk.close(file)
            if not is_ours:
                return "it is not what was saved, so it was left"
            disk.unlink(folder, place.name)
            disk.sync_directory(folder)
        finally:
            disk.close(folder)
    except FileNotFoundError:
        return "it was not there any more"
    except (OSError, ValueError) as exc:
        return f"it could not be removed ({exc.strerror if isinstance(exc, OSError) else exc})"
    return ""


def _result(job_id: JobId, at: str, words: int, removed: Removed, *, new: bool) -> Forgotten:
    if new:
        counted = "1 commit" if words == 1 else f"{words:,} commits"
        stored = "1 file" if removed.blobs == 1 else f"{removed.blobs:,} files"
        message = f"Forgotten: the words of {counted} are gone from the log and the index, and {stored} from the store."
    else:
        message = f"It was forgotten already, at {at}."
    message += " What it was drawn with, when, for whom and what it cost stays on record. Copies in backups are not ours to find."
    return Forgotten(
        uuid=job_id,
        forgotten_at=at,
        words=words,
        blobs_removed=removed.blobs,
        files_removed=removed.files,
        kept=removed.kept,
        message=message,
    )
