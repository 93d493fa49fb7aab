"""Every fact there is, in the past tense, and the commit that holds the facts of one decision.

Rules: add facts and fields (fields only with defaults), never rename, remove or give a new meaning: the
names are on people's disks. No secrets, no image bytes, no free text; free text is `Words`.
"""

from datetime import datetime
from typing import Literal

from eventlog.values import (
    Account,
    ArchivedSegment,
    Billed,
    Blob,
    Caps,
    Client,
    Cost,
    CostRange,
    Door,
    Embedding,
    ImageFile,
    ImageRequest,
    JobId,
    Picture,
    Position,
    Rendered,
    Sha256,
    Usage,
    Value,
    Words,
)

FORMAT = 1
"""Version of the log's format. Raised only when an older reader must not go on."""


class LogCreated(Value, frozen=True, tag=True):
    """The first fact of every log."""

    format: int
    software: str


class DaemonStarted(Value, frozen=True, tag=True):
    """On disk before the doors open: proof that the log takes writes."""

    software: str
    torn_bytes: int = 0


class DaemonStopped(Value, frozen=True, tag=True):
    """A clean end. A start without one before it followed a crash or a kill."""

    reason: str


class LogArchived(Value, frozen=True, tag=True):
    """What stands before byte `offset` of the log is moved out of it, as these files.

    `up_to` and `hash` are the last commit of it. `stub` is the hash that the file ends with that stands in its place.
    """

    up_to: Position
    hash: Sha256
    offset: int
    stub: Sha256
    segments: tuple[ArchivedSegment, ...]


class RequestReceived(Value, frozen=True, tag=True):
    """An operation was asked, by whom, through which door. Its arguments are words."""

    operation: str
    door: Door
    client: Client


class FactOfJob(Value, frozen=True):
    """Of one job that is not over; `JobEvent` names them all."""

    job: JobId


class FactOfOver(Value, frozen=True):
    """Of one job that is over, and may have left the board long ago; `LaterEvent` names them all."""

    job: JobId


class JobRequested(FactOfJob, frozen=True, tag=True):
    """A picture was ordered. Words: `prompt`, `output_path`, `output_dir`, `sources`.

    `sidecar`: the picture's file is left as it came and its provenance is put beside it. `request_key` is the
    digest of the key by which the asker can ask again without ordering again; empty without one. `retry_of` is the job
    that came to nothing and is drawn again by this one. If that one was drawn and only not put in its place, `kept` are
    its pictures, as they were `rendered`: they are in the store and paid for, so nothing is asked of the API. Where a person
    had to say yes, `approved_by` tells how they did: `elicitation` or `terminal`.
    """

    request: ImageRequest
    account: Account
    client: Client
    estimate: CostRange
    embedding: Embedding = "standard"
    any_path: bool = False
    sidecar: bool = False
    request_key: str = ""
    retry_of: JobId | None = None
    kept: tuple[Picture, ...] = ()
    rendered: Rendered = Rendered()
    approved_by: str = ""


class CapsChanged(Value, frozen=True, tag=True):
    """From here on this client's orders are held to these caps. Nobody can raise them but in its configuration."""

    client: Client
    caps: Caps


class JobStarted(FactOfJob, frozen=True, tag=True):
    """The job has its place among the running ones."""


class AttemptStarted(FactOfJob, frozen=True, tag=True):
    """Money may be spent from here on: this is on disk before the first byte leaves.

    `client_request_id` is sent as X-Client-Request-Id and names the attempt to OpenAI's support;
    `body_sha256` is the digest of the body exactly as sent.
    """

    attempt: int
    client_request_id: str
    body_sha256: Sha256


class AttemptFailed(FactOfJob, frozen=True, tag=True):
    """An attempt ended without a usable reply. `status` is the HTTP status, None without one.

    `kept` are the bytes of a reply that could not be used, if there were any; `usage` and `cost` what it said of
    its price. `wait_seconds` is how long nothing is asked until the next attempt, None if there is none.
    `moderation_stage` and `categories` are what the safety system said, if it did. Words: `message`.
    """

    attempt: int
    code: str
    billed: Billed
    status: int | None = None
    request_id: str = ""
    kept: Blob | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    wait_seconds: float | None = None
    moderation_stage: str = ""
    categories: tuple[str, ...] = ()


class PartialReceived(FactOfJob, frozen=True, tag=True):
    """A preview of a picture that is still being drawn is durable in the store. `index` counts from 0, as the API does."""

    attempt: int
    index: int
    picture: Picture


class ReplyReceived(FactOfJob, frozen=True, tag=True):
    """The reply is durable in the store; the money is accounted from here."""

    attempt: int
    pictures: tuple[Picture, ...]
    cost: Cost
    usage: Usage | None = None
    rendered: Rendered = Rendered()
    request_id: str = ""


class JobCompleted(FactOfJob, frozen=True, tag=True):
    """Every picture is a durable file. Words: `paths` and, if there are any, `sidecars`, in the order of `images`."""

    images: tuple[ImageFile, ...]


class JobFailed(FactOfJob, frozen=True, tag=True):
    """The job is over without files in their place. Words: `message`."""

    code: str
    billed: Billed


class JobCancelRequested(FactOfJob, frozen=True, tag=True):
    """Somebody wants a running job to stop."""


class JobCancelled(FactOfJob, frozen=True, tag=True):
    """The job stopped at somebody's wish. `billed` is unknown if a request was under way."""

    billed: Billed = "no"


class JobInterrupted(FactOfJob, frozen=True, tag=True):
    """The outcome of the attempt is not known; OpenAI may have charged for it. Words: `message`."""

    code: str = "outcome_unknown"


class HistoryImported(FactOfJob, frozen=True, tag=True):
    """A generation in the history of an earlier program was taken over, as that program told it.

    The log proves only that this was said when it was imported. `created_at` is the earlier program's time, `images`
    are its files as they were found, None where there was none. Words: `prompt`, `paths` in the order of `images`.
    """

    source: str
    created_at: datetime
    request: ImageRequest
    images: tuple[ImageFile | None, ...]
    cost: Cost
    usage: Usage | None = None


class WordsForgotten(FactOfOver, frozen=True, tag=True):
    """Somebody wants the words of a job to be gone: on disk before the first of them is removed.

    `positions` are the commits whose words go, the job's own and requests that repeat them. What the store holds for
    this job alone goes as well and, with `files`, what was saved for its owner.
    """

    positions: tuple[Position, ...]
    files: bool = False


class JobResolved(FactOfOver, frozen=True, tag=True):
    """Of a job that is over and may have been billed, somebody looked at the bill and said whether it was.

    `cost` is None if it was not. `client` is who said so.
    """

    billed: Literal["no", "yes"]
    client: Client
    cost: Cost | None = None


JobEvent = (
    HistoryImported
    | JobRequested
    | JobStarted
    | AttemptStarted
    | AttemptFailed
    | PartialReceived
    | ReplyReceived
    | JobCompleted
    | JobFailed
    | JobCancelRequested
    | JobCancelled
    | JobInterrupted
)
LaterEvent = WordsForgotten | JobResolved

Event = LogCreated | LogArchived | DaemonStarted | DaemonStopped | RequestReceived | CapsChanged | LaterEvent | JobEvent


class Commit(Value, frozen=True):
    """The facts of one decision: one line of the log. `words` is None if there are none or they are forgotten."""

    position: Position
    at: datetime
    events: tuple[Event, ...]
    words: Words | None = None
