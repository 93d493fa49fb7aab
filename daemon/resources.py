"""Finished generations and their pictures as resources: their addresses, the list of them, their contents, their completion.

Rule: an address names a generation, or a picture exactly as the API sent it, and stays good as long as its record
and its bytes do. What a prompt or a path says is somebody else's text: in a list it is short and harmless, and
whole only in the record itself.
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from daemon import results
from daemon.errors import Refused
from daemon.house import House
from daemon.results import JobReport
from eventlog.audit import harmless
from eventlog.errors import IndexUnavailable
from eventlog.history import GenerationQuery, Page
from eventlog.jobs import Job
from eventlog.values import JobId, JobState, Position, StoredImage
from tools.errors import FileFailed

GENERATION = "imaged://generation/{uuid}"
IMAGE = "imaged://image/{uuid}/{n}"
PREVIEW = "imaged://preview/{uuid}/{n}"
NO_SUCH_RESOURCE = "no_such_resource"  # the code of a refusal that says: not there, or not any more

GENERATIONS_A_PAGE = 50
NAME_CHARACTERS_MAX = 60
PATH_CHARACTERS_MAX = 1024  # only what an earlier program left can be longer than names allow
URI_CHARACTERS_SHOWN_MAX = 120
VALUES_MAX = 100  # in one completion; the protocol's own limit
_URI = re.compile(r"imaged://(?:generation/([^/?#]{1,64})|(image|preview)/([^/?#]{1,64})/([1-9][0-9]{0,3}))")
_CURSOR = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})")
_VARIABLE = re.compile(r"{([a-z]+)}")
_MIME = {"svg": "image/svg+xml"}


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told of a resource before it reads it. `priority` is 0 to 1; `size_bytes` None: not known before."""

    uri: str
    name: str
    title: str
    description: str
    mime_type: str
    last_modified: str
    priority: float
    size_bytes: int | None = None


class Listing(NamedTuple):
    """`next_cursor` is None on the last page."""

    resources: tuple[Listed, ...]
    next_cursor: str | None


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """`mime_type` is None where it differs from one resource to the next."""

    uri: str
    name: str
    title: str
    description: str
    mime_type: str | None = None


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """Either `text` or `blob`, which is base64."""

    mime_type: str
    text: str | None = None
    blob: str | None = None


class Choices(NamedTuple):
    """What fits what was typed, the likeliest first and at most `VALUES_MAX`; `total` counts all that does."""

    values: tuple[str, ...]
    total: int

    @classmethod
    def among(cls, values: tuple[str, ...], typed: str) -> "Choices":
        fitting = tuple(value for value in values if value.casefold().startswith(typed.casefold()))
        return cls(fitting[:VALUES_MAX], len(fitting))


NOTHING = Choices((), 0)

TEMPLATES = (
    Template(
        uri=GENERATION,
        name="generation",
        title="One generation",
        description=(
            "The whole record of a finished generation, by its UUID: prompt, parameters, files with their digests, tokens, "
            "cost and who asked. JSON."
        ),
        mime_type="application/json",
    ),
    Template(
        uri=IMAGE,
        name="image",
        title="One picture as it was received",
        description=(
            "Picture n, from 1, of a finished generation: the whole original, byte for byte as the API sent it, however large. "
            "Above 700 kB of base64 some clients refuse it; the file at the picture's path serves everybody on this machine."
        ),
    ),
    Template(
        uri=PREVIEW,
        name="preview",
        title="One preview as it was received",
        description=(
            "Preview n, from 1, of a job that was ordered with partial_images: there as soon as it has come, also while the "
            "picture is still being drawn, and of one that never came to its end."
        ),
    ),
)


async def page(house: House, cursor: str | None) -> Listing:
    """Generations, newest first, each followed by its pictures. What is finished later does not move the pages that follow.

    Raises:
        Refused: the cursor is not one of ours.
        IndexUnavailable, EventLogError
    """
    as_of, offset = _place(cursor)
    query = GenerationQuery(limit=GENERATIONS_A_PAGE, offset=offset, as_of=as_of)
    await house.ledger.settled()
    found, listed = await trio.to_thread.run_sync(partial(_listed, house, query))
    following = offset + len(found.jobs)
    more = found.jobs and (found.at_least or following < found.total)
    return Listing(listed, f"{found.position if as_of is None else as_of}.{following}" if more else None)


def _place(cursor: str | None) -> tuple[Position | None, int]:
    if cursor is None:
        return None, 0
    parts = _CURSOR.fullmatch(cursor)
    if parts is None:
        raise Refused(
            f'The cursor "{_shown(cursor)}" is not one that this server gave; begin again without a cursor.',
            code="bad_cursor",
            argument="cursor",
        )
    return Position(int(parts[1])), int(parts[2])


def _listed(house: House, query: GenerationQuery) -> tuple[Page, tuple[Listed, ...]]:
    """Blocking."""
    found = house.history.generations(query)
    return found, tuple(one for job in found.jobs for one in (_generation(job), *_images(house, job)))


def _generation(job: Job) -> Listed:
    summary = results.summary(job)
    count = f"{summary.image_count} picture" + ("s" if summary.image_count != 1 else "")
    return Listed(
        uri=GENERATION.format(uuid=job.id),
        name=_named(job),
        title=f"{summary.created_at[:10]}: {_named(job)}",
        description=f"{count} by {_shown(job.request.model)}; cost: {_shown(summary.cost.text)}. The whole record, as JSON.",
        mime_type="application/json",
        last_modified=summary.updated_at,
        priority=0.5,
    )


def _images(house: House, job: Job) -> Iterator[Listed]:
    """Blocking. Those that can be read: of what an earlier program drew, the store may hold nothing."""
    summary = results.summary(job)
    for n, image in enumerate(job.images, 1):
        size_bytes = _original_bytes(house, job, image)
        if size_bytes is None:
            continue
        yield Listed(
            uri=IMAGE.format(uuid=job.id, n=n),
            name=_bounded((image.path or "").rpartition("/")[2], NAME_CHARACTERS_MAX) or f"image {n}",
            title=f"Picture {n} of {len(job.images)}: {_named(job)}",
            description=_where(job, image),
            mime_type=_mime(image.format),
            last_modified=summary.updated_at,
            priority=0.8,
            size_bytes=size_bytes,
        )


def _original_bytes(house: House, job: Job, image: StoredImage) -> int | None:
    for picture in job.pictures:
        if picture.sha256 == image.original:
            return picture.size_bytes
    return None


async def links(house: House, report: JobReport) -> tuple[Listed, ...]:
    """The pictures that a report tells of, as resources. None while the index is away: the answer itself matters more.

    Raises:
        EventLogError
    """
    if not report.images:
        return ()
    try:
        job = await house.find_job(report.job_id)
        return () if job is None else await trio.to_thread.run_sync(lambda: tuple(_images(house, job)))
    except IndexUnavailable:
        return ()


async def read(house: House, uri: str) -> Contents:
    """
    Raises:
        Refused: there is no such resource, with the code `NO_SUCH_RESOURCE`.
        FileFailed: the store cannot be read, or the picture in it is damaged.
        IndexUnavailable, EventLogError
    """
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise _gone(f'There is no resource "{_shown(uri)}"; addresses are {GENERATION}, {IMAGE} and {PREVIEW}, with n from 1.')
    if parts[2] == "preview":
        return await _preview(house, parts[3], int(parts[4]))
    job = await _completed(house, parts[1] or parts[3])
    if parts[4] is None:
        report = results.report(job)
        return Contents(mime_type="application/json", text=msgspec.json.encode(report).decode())
    n = int(parts[4])
    if n > len(job.images):
        count = len(job.images)
        raise _gone(f"Generation {job.id} has no picture {n}; it has {count}" + (f", numbered 1 to {count}." if count else "."))
    image = job.images[n - 1]
    try:
        blob = await trio.to_thread.run_sync(partial(_base64, house, job, image))
    except FileFailed as exc:
        if exc.code != "not_there":
            raise
        raise _gone(_why_not_there(job, n, image)) from exc
    return Contents(mime_type=_mime(image.format), blob=blob)


async def _preview(house: House, job_id: str, n: int) -> Contents:
    """Of a job in whatever state."""
    job = await _found(house, job_id)
    if n > len(job.previews):
        raise _gone(f"Job {job.id} has no preview {n}; {len(job.previews)} came so far. check_job_status lists those there are.")
    preview = job.previews[n - 1]
    try:
        data = await trio.to_thread.run_sync(house.store.get, preview.sha256)
    except FileFailed as exc:
        if exc.code != "not_there":
            raise
        raise _gone(f"The store does not hold preview {n} of {job.id} any more.") from exc
    return Contents(mime_type=_mime(preview.format), blob=base64.b64encode(data).decode("ascii"))


async def _found(house: House, job_id: str) -> Job:
    job = await house.find_job(job_id.lower())
    if job is None:
        raise _gone(f"There is no generation {_shown(job_id)}; list_history shows those there are.")
    await house.ledger.durable(job.position)
    return job


async def _completed(house: House, job_id: str) -> Job:
    job = await _found(house, job_id)
    if not (job.state is JobState.COMPLETED or job.images):
        raise _gone(
            f"Job {job.id} is {job.state.value}, so it has no generation to read; check_job_status tells where it stands."
        )
    return job


def _base64(house: House, job: Job, image: StoredImage) -> str:
    """Blocking: twenty megabytes take a moment."""
    return base64.b64encode(house.original(job, image)).decode("ascii")


def _why_not_there(job: Job, n: int, image: StoredImage) -> str:
    where = f"Its file is, or was, {_where(job, image)}." if image.path else _where(job, image)
    if job.imported:
        drawn = f"Picture {n} of {job.id} was drawn by {_plain(job.imported, NAME_CHARACTERS_MAX)}, not by imaged"
        return f"{drawn}, which holds only its record. {where}"
    return f"The store does not hold picture {n} of {job.id} any more. {where}"


def _where(job: Job, image: StoredImage) -> str:
    if image.path:
        return _bounded(image.path, PATH_CHARACTERS_MAX)
    return "It was not put in its place." if job.error_code == "not_saved" else "Its file name is forgotten."


def _gone(sentence: str) -> Refused:
    return Refused(sentence, code=NO_SUCH_RESOURCE, argument="uri")


async def complete(house: House, template: str, variable: str, typed: str, chosen: Mapping[str, str]) -> Choices:
    """`chosen` are the variables that are filled in already.

    Raises:
        Refused: there is no such template, or it has no such variable.
        IndexUnavailable, EventLogError
    """
    if template not in (GENERATION, IMAGE, PREVIEW):
        raise _no(f'There is no resource template "{_shown(template)}"; there are {GENERATION}, {IMAGE} and {PREVIEW}.')
    if variable not in _VARIABLE.findall(template):
        raise _no(f'{template} has no variable "{_shown(variable)}".')
    if variable == "uuid":
        return await complete_uuid(house, typed)
    job = await house.find_job(chosen.get("uuid", "").lower())
    if job is None:
        return NOTHING
    await house.ledger.durable(job.position)
    count = len(job.previews if template == PREVIEW else job.images)
    return Choices.among(tuple(str(n) for n in range(1, count + 1)), typed)


async def complete_uuid(house: House, typed: str) -> Choices:
    """Finished generations, newest first.

    Raises:
        IndexUnavailable, EventLogError
    """
    await house.ledger.settled()
    ask: Callable[[], tuple[tuple[JobId, ...], int]] = partial(house.history.completed_ids, typed.lower(), VALUES_MAX)
    return Choices(*await trio.to_thread.run_sync(ask))


def _named(job: Job) -> str:
    if job.prompt is None:
        return "(prompt forgotten)"
    return _plain(job.prompt, NAME_CHARACTERS_MAX) or "(no prompt)"


def _plain(text: str, characters_max: int) -> str:
    """On one line, its spaces as they come out there."""
    return _bounded(" ".join(text.split()), characters_max)


def _bounded(text: str, characters_max: int) -> str:
    """Harmless, and of at most so many characters with what stands for the others."""
    shown = harmless(text[: characters_max + 1])
    return shown if len(shown) <= characters_max else shown[: characters_max - 1] + "…"


def _shown(text: str) -> str:
    return _plain(text, URI_CHARACTERS_SHOWN_MAX)


def _mime(format_: str) -> str:
    return _MIME.get(format_, f"image/{format_}")


def _no(sentence: str) -> Refused:
    return Refused(sentence, code="bad_arguments")
