"""From a drawing operation's arguments to a job on the board, and from there to what its asker gets.

Rule: everything that can be refused is refused before the job is recorded; once it is recorded the answer
tells of the job, whatever becomes of it. A caller who leaves, or waits no longer, does not stop the job.
"""

import secrets
from functools import partial

import msgspec
import trio

from daemon import decisions, results
from daemon.arguments import GenerateImage
from daemon.config import HOW_TO_SET_A_KEY, Settings
from daemon.errors import Refused
from daemon.house import House
from daemon.results import Answer, Attachment
from daemon.session import Caller
from eventlog.errors import IndexUnavailable
from eventlog.events import JobRequested, RequestReceived
from eventlog.jobs import Job, Stage
from eventlog.values import ImageRequest, JobId, JobState, Sha256, Words, make_job_id
from tools import models, pictures, pricing
from tools.errors import FileFailed
from tools.files import OutputRoot

HEARTBEAT_SECONDS = 2.0  # clients that reset their patience on progress want one every 10 s at least
BASE64_BYTES_MAX = 700_000  # a result above 1 MB is refused by Claude Desktop, with all that is beside the picture
PREVIEW_EDGES_PX = (1568, 1024, 768, 512, 256)
PREVIEW_QUALITY = 80


async def generate_image(house: House, caller: Caller, received: RequestReceived, words: Words, asked: GenerateImage) -> Answer:
    """Orders the picture and waits for it, at most `sync_wait_seconds`.

    Raises:
        Refused: nothing was recorded and nothing will be drawn.
    """
    settings = caller.session.settings
    request = ImageRequest(
        tool="generate_image",
        model=asked.model or settings.model,
        count=asked.sample_count,
        size=asked.size,
        quality=asked.quality,
        output_format=asked.output_format,
        background="transparent" if asked.transparent_background else "auto",
        moderation=asked.moderation,
    )
    words = msgspec.structs.replace(words, prompt=asked.prompt, output_path=asked.output_path)
    job_id, warnings = await _order(house, caller, received, words, request)
    try:
        job = await _wait(house, caller, job_id)
    except IndexUnavailable as exc:
        ordered = f"The picture was ordered as job {job_id} and is being drawn; do not ask for it again. {exc}"
        raise IndexUnavailable(ordered) from exc
    return await tell(
        house,
        job,
        warnings=warnings,
        picture_wanted=asked.return_base64,
        thumbnail_wanted=wants_thumbnail(settings, asked.include_thumbnail),
        settings=settings,
    )


async def _order(
    house: House, caller: Caller, received: RequestReceived, words: Words, request: ImageRequest
) -> tuple[JobId, tuple[str, ...]]:
    settings = caller.session.settings
    if not settings.can_draw:
        raise Refused(HOW_TO_SET_A_KEY, code="no_key")
    prompt, output_path = words.prompt or "", words.output_path or ""
    warnings = models.check(request, prompt, house.now().date())
    try:
        await trio.to_thread.run_sync(partial(_check_output, settings, output_path, request))
        await trio.to_thread.run_sync(partial(house.store.check_room, request.count))
    except FileFailed as exc:
        raise Refused(str(exc), code=exc.code, argument="output_path") from exc
    requested = JobRequested(
        job=make_job_id(house.now(), secrets.token_bytes(10)),
        request=request,
        account=settings.account,
        client=caller.client,
        estimate=pricing.estimate(request, prompt),
        embedding=settings.embedding,
        any_path=settings.any_path,
    )
    words = msgspec.structs.replace(words, output_dir=str(settings.output_dir))
    await house.ledger.record(decisions.request_job(received, requested, words))
    return requested.job, warnings


def _check_output(settings: Settings, output_path: str, request: ImageRequest) -> None:
    """Blocking. Everything about the place that can be known before money is spent."""
    OutputRoot.check(
        settings.output_dir,
        output_path,
        any_path=settings.any_path,
        output_format=request.output_format,
        count=request.count,
    )


async def _wait(house: House, caller: Caller, job_id: JobId) -> Job:
    """The job when it is over, or as it stands when the caller's patience ends. Tells its progress meanwhile."""
    started = trio.current_time()
    give_up_at = started + caller.session.settings.sync_wait_seconds
    told: tuple[Stage, int] | None = None
    next_beat = started
    while True:
        seen = house.ledger.position
        job = await house.find_job(job_id)
        if job is None:
            raise AssertionError(f"job {job_id} is neither on the board nor in the index")
        now = trio.current_time()
        if job.state.is_over or now >= give_up_at:
            await house.ledger.durable(job.position)
            return job
        if (job.stage, job.attempts) != told or now >= next_beat:
            told = (job.stage, job.attempts)
            next_beat = now + HEARTBEAT_SECONDS
            await caller.progress(now - started, _progress(job, now - started))
        with trio.move_on_at(min(give_up_at, next_beat)):
            await house.ledger.wait_beyond(seen)


def _progress(job: Job, seconds: float) -> str:
    match job.stage:
        case Stage.REQUESTED:
            return "waiting for a free place"
        case Stage.STARTED if job.attempts:
            return f"{job.error_code or 'not answered'}; trying again"
        case Stage.STARTED:
            return "starting"
        case Stage.REPLIED:
            return "received; saving"
        case _:
            return f"drawing with {job.request.model}, {seconds:.0f} s so far"


async def tell(
    house: House,
    job: Job,
    *,
    settings: Settings,
    warnings: tuple[str, ...] = (),
    picture_wanted: bool = False,
    thumbnail_wanted: bool = False,
) -> Answer:
    """What is said of a job as it stands, with its pictures if they are wanted and there."""
    attachments: list[Attachment] = []
    notes = list(warnings)
    if job.state is JobState.COMPLETED and (picture_wanted or thumbnail_wanted):
        for image in job.images:
            try:
                attachments += await trio.to_thread.run_sync(
                    partial(_attach, house, image.original, settings, picture_wanted, thumbnail_wanted)
                )
            except (pictures.BadPicture, FileFailed) as exc:
                notes.append(f"No preview of {image.path}: {exc}")
    notes += [a.note for a in attachments if a.note]
    failed = job.state in (JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED)
    return Answer(results.report(job, warnings=tuple(notes)), tuple(attachments), failed=failed)


def _attach(house: House, sha256: Sha256, settings: Settings, picture: bool, thumbnail: bool) -> list[Attachment]:
    """Blocking. The picture as received if it fits what clients take, otherwise the largest preview that does."""
    data = house.store.get(sha256)
    out = []
    if thumbnail:
        look = settings.thumbnails
        out.append(Attachment("image/jpeg", pictures.thumbnail(data, look.size_px, look.quality)))
    if picture:
        out.append(_whole_or_preview(data))
    return out


def _whole_or_preview(data: bytes) -> Attachment:
    fits = BASE64_BYTES_MAX * 3 // 4
    if len(data) <= fits:
        return Attachment(f"image/{pictures.sniff(data)}", data)
    for edge in PREVIEW_EDGES_PX:
        preview = pictures.thumbnail(data, edge, PREVIEW_QUALITY)
        if len(preview) <= fits:
            break
    note = (
        f"The picture is {len(data):,} bytes, too large to return; attached is a reduced preview of at most {edge} px. "
        "The file at the path is the whole picture."
    )
    return Attachment("image/jpeg", preview, note)


def wants_thumbnail(settings: Settings, asked: bool | None) -> bool:
    return settings.thumbnails.wanted if asked is None else asked
