"""What is asked without drawing anything: history, jobs, files and status.

Rule: nothing changes here. What is on its way to the disk is waited for before it is shown.
"""

import os
from datetime import UTC, datetime
from functools import partial

import msgspec
import trio

from daemon import arguments, importing, results, telling
from daemon.daemon_state import Pause, Status
from daemon.errors import Refused
from daemon.house import House
from daemon.results import Answer
from daemon.session import Caller
from daemon.version import VERSION
from eventlog.history import GenerationQuery, JobQuery
from eventlog.jobs import Job
from eventlog.values import JobState, digest
from tools import inputs, metadata, pictures
from tools.errors import FileFailed
from tools.models import catalogue
from tools.pictures import BadPicture

IMAGE_BYTES_MAX = 512 * 1024 * 1024  # what is looked at is not sent: a picture of any reply fits


KEYS_MAX = 30
KEY_CHARACTERS_MAX = 80
VALUE_CHARACTERS_MAX = 4000  # of what is not a prompt; the parameters of an edit of 16 pictures need most of it


async def list_history(house: House, caller: Caller, asked: arguments.ListHistory) -> Answer:
    query = GenerationQuery(
        limit=asked.limit,
        offset=asked.offset,
        tool=asked.tool_name,
        text=asked.query,
        since=_moment("since", asked.since),
        until=_moment("until", asked.until),
    )
    await house.ledger.settled()
    page = await trio.to_thread.run_sync(partial(house.history.generations, query))
    return Answer(
        results.HistoryPage(
            generations=tuple(results.summary(job) for job in page.jobs),
            total=page.total,
            limit=asked.limit,
            offset=asked.offset,
            note=await importing.offer(house, caller.session.settings),
            at_least=page.at_least,
        )
    )


async def get_history_by_uuid(house: House, caller: Caller, asked: arguments.GetHistoryByUuid) -> Answer:
    return _told(house, await find(house, asked.uuid, "uuid"))


async def list_jobs(house: House, caller: Caller, asked: arguments.ListJobs) -> Answer:
    state = None if asked.status is None else JobState(asked.status)
    query = JobQuery(limit=asked.limit, offset=asked.offset, tool=asked.tool_name, state=state)
    await house.ledger.settled()
    page = await trio.to_thread.run_sync(partial(house.history.jobs, query))
    return Answer(
        results.JobPage(
            jobs=tuple(results.summary(job) for job in page.jobs),
            total=page.total,
            limit=asked.limit,
            offset=asked.offset,
        )
    )


async def check_job_status(house: House, caller: Caller, asked: arguments.JobOnly) -> Answer:
    return _told(house, await find(house, asked.job_id, "job_id"))


def _told(house: House, job: Job) -> Answer:
    house.untold.tell(job)
    return Answer(telling.report(house, job))


async def get_job_result(house: House, caller: Caller, asked: arguments.GetJobResult) -> Answer:
    job = await find(house, asked.job_id, "job_id")
    settings = caller.session.settings
    return await telling.tell(
        house,
        job,
        settings=settings,
        picture_wanted=asked.return_base64,
        thumbnail_wanted=telling.wants_thumbnail(settings, asked.include_thumbnail),
    )


async def get_status(house: House, caller: Caller, asked: arguments.NoArguments) -> Answer:
    await house.ledger.settled()
    states = [job.state for job in house.ledger.board]
    return Answer(
        Status(
            software=VERSION,
            pid=os.getpid(),
            home=str(house.places.home),
            started_at=house.started_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            log_position=house.log.head.position,
            head_hash=house.log.head.hash,
            jobs_pending=states.count(JobState.PENDING),
            jobs_running=states.count(JobState.RUNNING),
            sessions=house.sessions,
            log_full=house.log.full,
            index_stale=house.index.stale,
            waiting_keys=tuple(
                Pause(key=account.key, until=results.time(pause.resumes_at), reason=pause.why)
                for account, pause in house.keyring.governor.all_paused().items()
            ),
        )
    )


async def wait_for_jobs(house: House, caller: Caller, asked: arguments.WaitForJobs) -> Answer:
    """As soon as one of the jobs has changed since `after`, all are over, or the time is up."""
    give_up_at = trio.current_time() + asked.wait_seconds
    while True:
        seen = house.ledger.position
        jobs = [await find(house, job_id, "job_ids") for job_id in asked.job_ids]
        changed = any(job.position > asked.after for job in jobs)
        if changed or all(job.state.is_over for job in jobs) or trio.current_time() >= give_up_at:
            for job in jobs:
                house.untold.tell(job)
            return Answer(results.JobsNow(position=seen, jobs=tuple(telling.report(house, job) for job in jobs)))
        with trio.move_on_at(give_up_at):
            await house.ledger.wait_beyond(seen)


async def list_generated_images(house: House, caller: Caller, asked: arguments.ListGeneratedImages) -> Answer:
    settings = caller.session.settings
    roots = (settings.output_dir, *(root for root in settings.input_dirs if root != settings.output_dir))
    try:
        found = await trio.to_thread.run_sync(partial(inputs.listing, asked.directory, roots))
    except FileFailed as exc:
        raise Refused(str(exc), code=exc.code, argument="directory") from exc
    page = found.entries[asked.offset : asked.offset + asked.limit]
    images = tuple(
        results.ImageFileFound(path=str(entry.path), size_bytes=entry.size_bytes, modified_at=results.time(entry.modified))
        for entry in page
    )
    return Answer(
        results.ImagesPage(
            directory=str(found.folder), images=images, total=len(found.entries), limit=asked.limit, offset=asked.offset
        )
    )


async def get_metadata_from_image(house: House, caller: Caller, asked: arguments.GetMetadataFromImage) -> Answer:
    """What stands in a picture, and whether this history knows it by its bytes or by the UUID in it."""
    roots = caller.session.settings.input_roots
    try:
        look = partial(inputs.read, asked.image_path, roots, name="image_path", bytes_max=IMAGE_BYTES_MAX)
        data = await trio.to_thread.run_sync(look)
        found = await trio.to_thread.run_sync(partial(_examined, data, asked.image_path))
    except FileFailed as exc:
        raise Refused(str(exc), code=exc.code, argument="image_path") from exc
    except BadPicture as exc:
        sentence = f"{asked.image_path[:200]!r} is not a picture that can be examined: {exc}."
        raise Refused(sentence, code="bad_picture", argument="image_path") from exc
    await house.ledger.settled()
    job = await trio.to_thread.run_sync(partial(house.history.job_of_image, digest(data)))
    job = job or await house.find_job(found.metadata.get("MCP-History-UUID", "")[:64].lower())
    if job is None:
        return Answer(found)
    images = {image.sha256: "unchanged" for image in job.images}
    integrity = {**{image.original: "original" for image in job.images}, **images}.get(digest(data), "changed")
    told = {
        "unchanged": "This is a file of this history, exactly as it was saved.",
        "original": "This is a picture of this history, exactly as OpenAI sent it.",
        "changed": "The file names a generation of this history, but its bytes are not those that were saved.",
    }
    return Answer(msgspec.structs.replace(found, message=told[integrity], integrity=integrity, history=results.summary(job)))


def _examined(data: bytes, path: str) -> results.ImageMetadata:
    """Blocking."""
    measured = pictures.measure(data)
    written = metadata.extract(data)
    return results.ImageMetadata(
        message="This picture is not in the history." if written else "The picture carries no metadata of ours.",
        path=path,
        format=measured.format,
        width=measured.width,
        height=measured.height,
        size_bytes=len(data),
        sha256=digest(data),
        metadata={key[:KEY_CHARACTERS_MAX]: _bounded(key, value) for key, value in list(written.items())[:KEYS_MAX]},
        content_credentials=metadata.has_credentials(data),
        integrity="unknown",
    )


async def find(house: House, job_id: str, argument: str) -> Job:
    job = await house.find_job(job_id)
    if job is None:
        raise Refused(
            f"There is no job or generation {job_id[:64]}; list_jobs and list_history show the ids there are.",
            code="no_such_job",
            argument=argument,
        )
    await house.ledger.durable(job.position)
    return job


def _moment(argument: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused(
            f"{argument} is {text[:40]!r}; give a date or time such as 2026-11-22 or 2026-11-22T09:30.",
            code="bad_arguments",
            argument=argument,
        ) from None


def _bounded(key: str, value: str) -> str:
    """Whoever made the file decided how long this is; an answer of many megabytes ends a client's connection."""
    most = catalogue().limits.prompt_characters_max if key == "MCP-Prompt" else VALUE_CHARACTERS_MAX
    return value if len(value) <= most else f"{value[:most]}… ({len(value):,} characters)"
