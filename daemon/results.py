"""What operations answer with, and the readable twin of each: the same facts in the same order, for people and models.

Rule: unknown is said as unknown. Money is whole micro-dollars beside its text; times are UTC, ISO 8601.
"""

from datetime import UTC, datetime
from typing import Literal

import msgspec

from daemon.arguments import State
from eventlog.jobs import Job
from eventlog.values import Cost, ImageRequest, JobState, StoredImage, Usage
from tools import openai_api, pricing

PROMPT_SHOWN_MAX = 80  # characters of a prompt in a list


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every operation's result."""


class Attachment(msgspec.Struct, frozen=True):
    """A picture for the asker's eyes. `note` says what is not as asked."""

    mime_type: str
    data: bytes
    note: str = ""


class Answer(msgspec.Struct, frozen=True):
    """`failed`: the result tells of a job that came to nothing."""

    result: Result
    attachments: tuple[Attachment, ...] = ()
    failed: bool = False


class ImageResult(Result, frozen=True, kw_only=True):
    """`path` is null once the file name has been forgotten, and of a picture that could not be put in its place, of which
    only the store has a copy. `original_sha256` is the picture exactly as the API sent it,
    which `resource` gives. `derived`: the original carries content credentials, the file is a copy with our metadata.
    """

    uuid: str
    path: str | None
    sha256: str
    size_bytes: int
    width: int
    height: int
    format: str
    original_sha256: str
    resource: str
    derived: bool = False
    sidecar: str | None = None


class SourceResult(Result, frozen=True, kw_only=True):
    """A picture that an edit started from, as it was sent: `name` is what its asker called it."""

    name: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    format: str


class CostLine(Result, frozen=True, kw_only=True):
    kind: str
    tokens: int
    micro_usd: int


class CostResult(Result, frozen=True, kw_only=True):
    """`basis`: usage (what the API counted), estimate (not settled yet), unknown, not_billed, offline (nothing charged),
    imported: `claimed_micro_usd` is then what the earlier program believed, and nothing more is known; or resolved: what
    its owner found on the bill, or its upper estimate if they only found that it was billed.
    """

    text: str
    basis: str
    micro_usd: int | None
    low_micro_usd: int | None = None
    high_micro_usd: int | None = None
    would_be_micro_usd: int | None = None
    claimed_micro_usd: int | None = None
    breakdown: tuple[CostLine, ...] = ()
    price_table: str = ""


class JobSummary(Result, frozen=True, kw_only=True):
    job_id: str
    state: State
    tool: str
    created_at: str
    updated_at: str
    prompt: str | None
    model: str
    size: str
    quality: str
    output_format: str
    image_count: int
    cost: CostResult
    backend: str
    path: str | None = None
    error_code: str = ""
    error: str = ""
    imported: str = ""


class JobReport(JobSummary, frozen=True, kw_only=True):
    """`prompt` is whole here. `size` and `quality` are those that the API says it used, once it has answered.

    `next_step` is what to do about `error_code`, `retry_at` when a job between two attempts asks again. `imported` names
    the earlier program that drew it; `missing_files` are those that were not found when it was imported. `retry_of` is
    the job that this one draws again, `previews` the resources of what came of an unfinished picture. Of a dry run the
    `state` is "dry_run", and there is no `job_id`.
    """

    state: State | Literal["dry_run"]  # type: ignore[assignment]  # a list never tells of a dry run
    message: str
    images: tuple[ImageResult, ...]
    requested: ImageRequest
    usage: Usage | None
    billed: str
    client: str
    key_fingerprint: str
    attempts: int
    openai_request_id: str
    client_request_id: str
    log_position: int
    background: str
    sources: tuple[SourceResult, ...] = ()
    next_step: str = ""
    retry_at: str | None = None
    moderation_stage: str = ""
    moderation_categories: tuple[str, ...] = ()
    missing_files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    retry_of: str | None = None
    previews: tuple[str, ...] = ()


class JobPage(Result, frozen=True, kw_only=True):
    """`total` counts everything that fits the filter, not only this page."""

    jobs: tuple[JobSummary, ...]
    total: int
    limit: int
    offset: int


class HistoryPage(Result, frozen=True, kw_only=True):
    """`total` counts everything that fits the filter, not only this page; with `at_least` there may be more, because a long
    history is not counted to its end. `note` offers an old history to import.
    """

    generations: tuple[JobSummary, ...]
    total: int
    limit: int
    offset: int
    note: str = ""
    at_least: bool = False


class HistoryImport(Result, frozen=True, kw_only=True):
    """`found` rows were `imported` now, `already_there`, or unusable. `missing_files` are of those imported now."""

    path: str
    found: int
    imported: int
    already_there: int
    missing_files: int
    unusable: tuple[str, ...]
    message: str


class JobsNow(Result, frozen=True, kw_only=True):
    """Jobs in the order they were asked for; `position` is how far the log was when they were looked at."""

    position: int
    jobs: tuple[JobReport, ...]


class ImageFileFound(Result, frozen=True, kw_only=True):
    path: str
    size_bytes: int
    modified_at: str


class ImagesPage(Result, frozen=True, kw_only=True):
    """Newest first. `total` counts every picture in the directory, not only this page."""

    directory: str
    images: tuple[ImageFileFound, ...]
    total: int
    limit: int
    offset: int


class ImageMetadata(Result, frozen=True, kw_only=True):
    """`metadata` is what stands in the file, which anybody may have written. `integrity` compares its bytes with the log:
    unchanged (the file as it was saved), original (as the API sent it), changed, or unknown (not in this history).
    """

    message: str
    path: str
    format: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    metadata: dict[str, str]
    content_credentials: bool
    integrity: str
    history: JobSummary | None = None


def summary(job: Job) -> JobSummary:
    return JobSummary(
        job_id=job.id,
        state=job.state.value,
        tool=job.request.tool,
        created_at=time(job.requested_at),
        updated_at=time(job.changed_at),
        prompt=_excerpt(job.prompt),
        model=job.request.model,
        size=job.rendered.size or job.request.size,
        quality=job.rendered.quality or job.request.quality,
        output_format=job.rendered.output_format or job.request.output_format,
        image_count=len(job.images) or len(job.pictures) or job.request.count,
        cost=_cost(job),
        backend=job.account.backend,
        path=job.images[0].path if job.images else None,
        error_code=job.error_code,
        error=job.error,
        imported=job.imported,
    )


def report(job: Job, *, warnings: tuple[str, ...] = (), message: str = "") -> JobReport:
    fields = {**msgspec.structs.asdict(summary(job)), "prompt": job.prompt}
    return JobReport(
        **fields,
        message=message or sentence(job),
        images=tuple(_image(job.id, number, image) for number, image in enumerate(job.images, start=1)),
        requested=job.request,
        usage=job.usage,
        billed=job.billed,
        client=f"{job.client.name} {job.client.version}".strip(),
        key_fingerprint=job.account.key,
        attempts=job.attempts,
        openai_request_id=job.request_id,
        client_request_id=job.client_request_id,
        log_position=job.position,
        background=job.rendered.background or job.request.background,
        sources=_sources(job),
        next_step=_next_step(job),
        retry_at=None if job.retry_at is None else time(job.retry_at),
        moderation_stage=job.moderation_stage,
        moderation_categories=job.categories,
        missing_files=job.missing,
        warnings=warnings,
        retry_of=job.retry_of,
        previews=tuple(f"imaged://preview/{job.id}/{number}" for number in range(1, len(job.previews) + 1)),
    )


def sentence(job: Job) -> str:
    """Where the job stands and what to do next, in one or two sentences."""
    match job.state:
        case JobState.PENDING:
            return f"Waiting for a free place. Ask wait_for_job with job_id {job.id}; nothing has been spent yet."
        case JobState.RUNNING if job.cancel_requested:
            return f"It is being cancelled. Ask check_job_status with job_id {job.id} what became of it."
        case JobState.RUNNING if job.retry_at is not None:
            return f"{job.error} It is tried again at {time(job.retry_at)}; nothing was charged so far."
        case JobState.RUNNING:
            return (
                f"Still drawing. Ask wait_for_job with job_id {job.id}; do not ask for the same picture "
                "again, that would be paid twice."
            )
        case JobState.COMPLETED:
            return _made(job)
        case JobState.CANCELLED:
            spent = {"unknown": "It may still be billed.", "yes": "It was billed.", "no": "Nothing was spent."}
            return f"Cancelled. {spent[job.billed]}"
        case JobState.INTERRUPTED if _is_resolved(job):
            return f"{job.error} Its owner has found that it was {'' if job.billed == 'yes' else 'not '}billed.".strip()
        case JobState.INTERRUPTED | JobState.FAILED:
            return f"{job.error} {_next_step(job)}".strip()


def _next_step(job: Job) -> str:
    if job.state not in (JobState.FAILED, JobState.INTERRUPTED):
        return ""
    if _is_resolved(job):
        return "Nothing is left to be found out; retry_job orders the picture again."
    return openai_api.next_step(job.error_code)


def _is_resolved(job: Job) -> bool:
    return job.state is JobState.INTERRUPTED and job.billed != "unknown" and job.account.backend == "openai"


def _made(job: Job) -> str:
    count = len(job.images)
    made = "1 picture was made" if count == 1 else f"{count} pictures were made"
    made += f"; {job.request.count} were ordered, but OpenAI sent no more" if count < job.request.count else ""
    if job.puts_what_was_kept and not job.imported:
        put = "1 picture was" if count == 1 else f"{count} pictures were"
        return f"{put} put in place as drawn for job {job.retry_of}; nothing was charged for that."
    if job.imported:
        lost = f" {len(job.missing)} of its files were not found." if job.missing else ""
        return f"Imported from the history of {job.imported}.{lost}"
    if job.cancel_requested:
        paid = "" if job.account.backend == "offline" else " and paid for"
        return f"The wish to cancel came too late: {made}{paid}, and kept."
    return made + (" offline; nothing was charged." if job.account.backend == "offline" else ".")


def _sources(job: Job) -> tuple[SourceResult, ...]:
    named = [*zip(job.request.sources, job.source_names or ("(forgotten)",) * len(job.request.sources), strict=True)]
    named += [(extra, name) for extra, name in ((job.request.mask, "mask"), (job.request.markup, "markup")) if extra]
    return tuple(SourceResult(name=name, **msgspec.structs.asdict(source)) for source, name in named)


def _image(job_id: str, number: int, image: StoredImage) -> ImageResult:
    return ImageResult(
        uuid=job_id,
        path=image.path,
        sha256=image.sha256,
        size_bytes=image.size_bytes,
        width=image.width,
        height=image.height,
        format=image.format,
        original_sha256=image.original,
        resource=f"imaged://image/{job_id}/{number}",
        derived=image.derived,
        sidecar=image.sidecar,
    )


def _cost(job: Job) -> CostResult:
    cost: Cost | None = job.cost
    if cost is None and job.state.is_over and job.billed == "no":
        return CostResult(text="nothing was charged", basis="not_billed", micro_usd=0, price_table=job.estimate.table)
    if cost is None:
        return CostResult(
            text="estimated " + pricing.show_range(job.estimate),
            basis="estimate",
            micro_usd=None,
            low_micro_usd=job.estimate.low,
            high_micro_usd=job.estimate.high,
            price_table=job.estimate.table,
        )
    text = pricing.show(cost.amount)
    if cost.basis == "imported":
        text = "unknown" if cost.claimed is None else f"unknown ({job.imported} believed {pricing.show(cost.claimed)})"
    if cost.basis == "resolved":
        text += " (as its owner said)"
    if cost.basis == "offline":
        text = f"$0 (offline; would be {pricing.show(cost.would_be)})"
    return CostResult(
        text=text,
        basis=cost.basis,
        micro_usd=cost.amount,
        would_be_micro_usd=cost.would_be,
        claimed_micro_usd=cost.claimed,
        breakdown=tuple(
            CostLine(kind=line.kind, tokens=line.tokens, micro_usd=line.amount)
            for line in ([] if job.imported else pricing.breakdown(job.request.model, job.usage))
        ),
        price_table=cost.table,
    )


def time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _excerpt(prompt: str | None) -> str | None:
    if prompt is None or len(prompt) <= PROMPT_SHOWN_MAX:
        return prompt
    return prompt[:PROMPT_SHOWN_MAX] + "…"
