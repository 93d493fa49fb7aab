"""What is said of a job as it stands, with its pictures if they are wanted and there.

Rule: an answer has a limit. A picture that does not fit comes as the largest preview that does, and the answer says so.
"""

from functools import partial
from typing import NamedTuple

import trio

from daemon import results
from daemon.config import Settings
from daemon.house import House
from daemon.results import Answer, Attachment, JobReport
from eventlog.jobs import Job, Stage
from eventlog.values import JobId, JobState, StoredImage
from tools import decoder, pictures
from tools.errors import FileFailed

PREVIEW_EDGES_PX = (1568, 1024, 768, 512, 256, 128, 64)
PREVIEW_QUALITY = 80


async def tell_now(house: House, job_id: JobId, *, settings: Settings, warnings: tuple[str, ...] = ()) -> Answer:
    """Of a job that was found or ordered a moment ago."""
    job = await house.find_job(job_id)
    if job is None:
        raise AssertionError(f"job {job_id} is neither on the board nor in the index")
    await house.ledger.durable(job.position)
    return await tell(house, job, settings=settings, warnings=warnings)


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
    house.untold.tell(job)
    attachments: list[Attachment] = []
    notes = list(warnings)
    if job.images and (picture_wanted or thumbnail_wanted):
        room = settings.inline_bytes_max * 3 // 4 // max(1, len(job.images))  # base64 makes four bytes of three
        for image in job.images:
            try:
                attachments += await trio.to_thread.run_sync(
                    partial(_attach, house, job, image, settings, _Wanted(thumbnail_wanted, picture_wanted, room)),
                    limiter=house.vetting,
                )
            except (pictures.BadPicture, FileFailed) as exc:
                notes.append(f"No preview of {image.path or 'the picture'}: {exc}")
    if job.previews and thumbnail_wanted and not job.state.is_over:
        try:
            thumbnail = await trio.to_thread.run_sync(partial(_of_newest, house, job, settings), limiter=house.vetting)
            attachments.append(thumbnail)
            notes.append(f"Attached is preview {len(job.previews)} of a picture that is still being drawn.")
        except (pictures.BadPicture, FileFailed) as exc:
            notes.append(f"The newest preview cannot be shown: {exc}")
    notes += [a.note for a in attachments if a.note]
    notes += [_credentials(house, image) for image in job.images if image.derived]
    failed = job.state in (JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED)
    return Answer(report(house, job, tuple(notes)), tuple(attachments), failed=failed)


def report(house: House, job: Job, warnings: tuple[str, ...] = ()) -> JobReport:
    waits = not job.state.is_over and job.stage in (Stage.REQUESTED, Stage.STARTED)
    pause = house.keyring.governor.paused(job.account)
    message = ""
    if waits and pause is not None:
        message = f"Waiting until {results.time(pause.resumes_at)}, as all pictures of this key do: {pause.why}"
    if waits and not house.keyring.can_draw(job.account):
        message = (
            f"Waiting for an API key: no client has brought the one with the fingerprint {job.account.key} since the daemon "
            "started. Start the client that ordered it, or any command with that key; nothing has been spent yet."
        )
    return results.report(job, warnings=warnings, message=message)


def _credentials(house: House, image: StoredImage) -> str:
    return (
        f"{image.path or 'The picture'} came with content credentials (C2PA), which vouch for its bytes as OpenAI sent them. The "
        f"file is a copy with added metadata and marked as derived; the original is {house.store.path(image.original)}. With "
        "OPENAI_IMAGE_EMBED_METADATA=sidecar files stay as they come."
    )


def _of_newest(house: House, job: Job, settings: Settings) -> Attachment:
    """Blocking. The newest preview as a thumbnail."""
    wanted = settings.thumbnails
    smaller = (wanted.size_px, *(edge for edge in PREVIEW_EDGES_PX if edge < wanted.size_px))
    data = house.store.get(job.previews[-1].sha256)
    room = settings.inline_bytes_max * 3 // 4
    return Attachment("image/jpeg", decoder.preview(data, smaller, wanted.quality, bytes_max=room)[0])


class _Wanted(NamedTuple):
    """What of one picture goes into the answer, and for how many bytes there is room."""

    thumbnail: bool
    picture: bool
    room: int


def _attach(house: House, job: Job, image: StoredImage, settings: Settings, wanted: _Wanted) -> list[Attachment]:
    """Blocking. The picture as received if it fits, otherwise the largest preview that does."""
    room = wanted.room
    data = house.original(job, image, settings.input_roots)
    out = []
    if wanted.thumbnail:
        thumbnail = settings.thumbnails
        smaller = (thumbnail.size_px, *(edge for edge in PREVIEW_EDGES_PX if edge < thumbnail.size_px))
        out.append(Attachment("image/jpeg", decoder.preview(data, smaller, thumbnail.quality, bytes_max=room // 4)[0]))
        room -= room // 4
    if wanted.picture and image.format == "svg":
        raise pictures.BadPicture("clients show no svg that is sent to them; open the file")
    if wanted.picture and len(data) <= room:
        out.append(Attachment(f"image/{image.format}", data))
    elif wanted.picture:
        preview, edge = decoder.preview(data, PREVIEW_EDGES_PX, PREVIEW_QUALITY, bytes_max=room)
        note = (
            f"The picture is {len(data):,} bytes, too large to return; attached is a reduced preview of at most {edge} px. "
            f"The whole picture is the file {image.path} and the resource imaged://image/{job.id}/{job.images.index(image) + 1}."
        )
        out.append(Attachment("image/jpeg", preview, note))
    return out


def wants_thumbnail(settings: Settings, asked: bool | None) -> bool:
    return settings.thumbnails.wanted if asked is None else asked
