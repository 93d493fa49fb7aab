"""What operations answer with, and the readable twin of each: the same facts in the same order, for people and models.

Rule: unknown is said as unknown. Money is whole micro-dollars beside its text; times are UTC, ISO 8601.
"""

from datetime import UTC, datetime

import msgspec

from daemon.arguments import State
from eventlog.jobs import Job
from eventlog.values import Cost, JobState, StoredImage, Usage
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
    """`path` is null once the file name has been forgotten. `original_sha256` is the picture exactly as the API sent it."""

    path: str | None
    sha256: str
    size_bytes: int
    width: int
    height: int
    format: str
    original_sha256: str


class CostResult(Result, frozen=True, kw_only=True):
    """`basis`: usage (what the API counted), estimate (not settled yet), unknown, not_billed, or offline (nothing charged)."""

    text: str
    basis: str
    micro_usd: int | None
    low_micro_usd: int | None = None
    high_micro_usd: int | None = None
    would_be_micro_usd: int | None = None
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


class JobReport(JobSummary, frozen=True, kw_only=True):
    """`prompt` is whole here. `size` and `quality` are those that the API says it used, once it has answered."""

    message: str
    images: tuple[ImageResult, ...]
    requested: dict[str, str | int | None]
    usage: Usage | None
    billed: str
    client: str
    key_fingerprint: str
    attempts: int
    openai_request_id: str
    client_request_id: str
    log_position: int
    warnings: tuple[str, ...] = ()


class JobPage(Result, frozen=True, kw_only=True):
    """`total` counts everything that fits the filter, not only this page."""

    jobs: tuple[JobSummary, ...]
    total: int
    limit: int
    offset: int


class HistoryPage(Result, frozen=True, kw_only=True):
    """`total` counts everything that fits the filter, not only this page."""

    generations: tuple[JobSummary, ...]
    total: int
    limit: int
    offset: int


class Status(Result, frozen=True, kw_only=True):
    software: str
    pid: int
    home: str
    started_at: str
    log_position: int
    head_hash: str
    jobs_pending: int
    jobs_running: int
    sessions: int
    log_full: bool
    index_stale: bool


class Stopping(Result, frozen=True, kw_only=True):
    message: str


def summary(job: Job) -> JobSummary:
    return JobSummary(
        job_id=job.id,
        state=job.state.value,
        tool=job.request.tool,
        created_at=_time(job.requested_at),
        updated_at=_time(job.changed_at),
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
    )


def report(job: Job, *, warnings: tuple[str, ...] = (), message: str = "") -> JobReport:
    fields = {**msgspec.structs.asdict(summary(job)), "prompt": job.prompt}
    return JobReport(
        **fields,
        message=message or sentence(job),
        images=tuple(_image(image) for image in job.images),
        requested=msgspec.to_builtins(job.request),
        usage=job.usage,
        billed=job.billed,
        client=f"{job.client.name} {job.client.version}".strip(),
        key_fingerprint=job.account.key,
        attempts=job.attempts,
        openai_request_id=job.request_id,
        client_request_id=job.client_request_id,
        log_position=job.position,
        warnings=warnings,
    )


def sentence(job: Job) -> str:
    """Where the job stands and what to do next, in one or two sentences."""
    match job.state:
        case JobState.PENDING:
            return f"Waiting for a free place. Ask get_job_result with job_id {job.id} in a while; nothing has been spent yet."
        case JobState.RUNNING:
            return (
                f"Still drawing. Ask get_job_result with job_id {job.id} in a while; do not ask for the same picture "
                "again, that would be paid twice."
            )
        case JobState.COMPLETED:
            count = len(job.images)
            made = "1 picture was made" if count == 1 else f"{count} pictures were made"
            return made + (" offline; nothing was charged." if job.account.backend == "offline" else ".")
        case JobState.CANCELLED:
            return "Cancelled." + (" It may still be billed." if job.billed != "no" else " Nothing was spent.")
        case JobState.INTERRUPTED | JobState.FAILED:
            return f"{job.error} {openai_api.next_step(job.error_code)}".strip()


def _image(image: StoredImage) -> ImageResult:
    return ImageResult(
        path=image.path,
        sha256=image.sha256,
        size_bytes=image.size_bytes,
        width=image.width,
        height=image.height,
        format=image.format,
        original_sha256=image.original,
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
    if cost.basis == "offline":
        text = f"$0 (offline; would be {pricing.show(cost.would_be)})"
    return CostResult(
        text=text,
        basis=cost.basis,
        micro_usd=cost.amount,
        would_be_micro_usd=cost.would_be,
        price_table=cost.table,
    )


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _excerpt(prompt: str | None) -> str | None:
    if prompt is None or len(prompt) <= PROMPT_SHOWN_MAX:
        return prompt
    return prompt[:PROMPT_SHOWN_MAX] + "…"
