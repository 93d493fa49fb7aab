"""The job state machine and the board that shows every live job's present state.

Rule: what may follow what is written in `_NEXT` and nowhere else. Replay and live work pass through the
same `JobBoard.apply`.

A job's stage is finer than the state its owner sees: `running` is either between attempts (`started`),
inside one (`attempting`: money may be spent, the outcome is open) or past one (`replied`: paid, and the
pictures are in the store).
"""

import enum
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

import msgspec

from eventlog.errors import IllegalTransition
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Commit,
    Event,
    FactOfJob,
    FactOfOver,
    HistoryImported,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobStarted,
    LaterEvent,
    PartialReceived,
    ReplyReceived,
    WordsForgotten,
)
from eventlog.values import (
    Account,
    Billed,
    Client,
    Cost,
    CostRange,
    Embedding,
    ImageFile,
    ImageRequest,
    JobId,
    JobState,
    Picture,
    Position,
    Rendered,
    StoredImage,
    Usage,
    Value,
    Words,
)


class Stage(enum.Enum):
    REQUESTED = "requested"
    STARTED = "started"
    ATTEMPTING = "attempting"
    REPLIED = "replied"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    __hash__ = object.__hash__  # there is one of each; Enum's own is Python, and a million commits look into `_NEXT`


STATE_OF = {
    Stage.REQUESTED: JobState.PENDING,
    Stage.STARTED: JobState.RUNNING,
    Stage.ATTEMPTING: JobState.RUNNING,
    Stage.REPLIED: JobState.RUNNING,
    Stage.COMPLETED: JobState.COMPLETED,
    Stage.FAILED: JobState.FAILED,
    Stage.CANCELLED: JobState.CANCELLED,
    Stage.INTERRUPTED: JobState.INTERRUPTED,
}

_NEXT: dict[tuple[Stage, type[Event]], Stage] = {
    (Stage.REQUESTED, JobStarted): Stage.STARTED,
    (Stage.REQUESTED, JobFailed): Stage.FAILED,
    (Stage.REQUESTED, JobCancelled): Stage.CANCELLED,
    (Stage.STARTED, AttemptStarted): Stage.ATTEMPTING,
    (Stage.STARTED, JobCancelRequested): Stage.STARTED,
    (Stage.STARTED, JobFailed): Stage.FAILED,
    (Stage.STARTED, JobCancelled): Stage.CANCELLED,
    (Stage.ATTEMPTING, AttemptFailed): Stage.STARTED,
    (Stage.ATTEMPTING, PartialReceived): Stage.ATTEMPTING,
    (Stage.ATTEMPTING, ReplyReceived): Stage.REPLIED,
    (Stage.ATTEMPTING, JobCancelRequested): Stage.ATTEMPTING,
    (Stage.ATTEMPTING, JobInterrupted): Stage.INTERRUPTED,
    (Stage.ATTEMPTING, JobCancelled): Stage.CANCELLED,
    (Stage.REPLIED, JobCancelRequested): Stage.REPLIED,
    (Stage.REPLIED, JobCompleted): Stage.COMPLETED,
    (Stage.REPLIED, JobFailed): Stage.FAILED,
}
"""After AttemptFailed with an unknown outcome the same commit says JobInterrupted: see `_AFTER_UNKNOWN`."""

_AFTER_UNKNOWN: dict[tuple[Stage, type[Event]], Stage] = {(Stage.STARTED, JobInterrupted): Stage.INTERRUPTED}
"""Only a job whose last attempt may have been billed can be interrupted between attempts."""

_FROM_KEPT: dict[tuple[Stage, type[Event]], Stage] = {(Stage.STARTED, JobCompleted): Stage.COMPLETED}
"""Only a job that was ordered with pictures of an earlier one comes to its end without an attempt."""


class Job(Value, frozen=True, omit_defaults=True):
    """All that is known of one job. Times are UTC. `position` is the commit that last changed it.

    `imported` names the earlier program that drew it, and `missing` its files that were not found then.
    `retry_at` is when a job between two attempts asks again; from `forgotten_at` on its words are gone. `retry_of` is
    the job that this one draws again. `pictures` are what the API sent, `images` what can be had of it once the job is
    over: files or, of a job that failed to put them in their place, the store's copies alone, without a path. `previews`
    are what the latest attempt has sent of its unfinished pictures, in the order in which they came.
    """

    id: JobId
    stage: Stage
    position: Position
    requested_position: Position
    requested_at: datetime
    changed_at: datetime
    request: ImageRequest
    account: Account
    client: Client
    estimate: CostRange
    embedding: Embedding
    any_path: bool
    prompt: str | None
    output_path: str | None
    output_dir: str | None
    attempts: int = 0
    client_request_id: str = ""
    request_id: str = ""
    cancel_requested: bool = False
    billed: Billed = "no"
    pictures: tuple[Picture, ...] = ()
    images: tuple[StoredImage, ...] = ()
    usage: Usage | None = None
    cost: Cost | None = None
    rendered: Rendered = Rendered()
    error_code: str = ""
    error: str = ""
    sidecar: bool = False
    request_key: str = ""
    source_names: tuple[str, ...] = ()
    retry_at: datetime | None = None
    moderation_stage: str = ""
    categories: tuple[str, ...] = ()
    imported: str = ""
    missing: tuple[str, ...] = ()
    forgotten_at: datetime | None = None
    retry_of: JobId | None = None
    previews: tuple[Picture, ...] = ()

    @property
    def state(self) -> JobState:
        return STATE_OF[self.stage]

    @property
    def puts_what_was_kept(self) -> bool:
        """Nothing is asked of the API: it is about pictures that an earlier job has paid for."""
        return bool(self.pictures) and self.attempts == 0


NO_WORDS = Words(salt="")  # of a commit that has none, or whose words are forgotten


def _requested(event: JobRequested, commit: Commit) -> Job:
    words = commit.words or NO_WORDS
    return Job(
        id=event.job,
        stage=Stage.REQUESTED,
        position=commit.position,
        requested_position=commit.position,
        requested_at=commit.at,
        changed_at=commit.at,
        request=event.request,
        account=event.account,
        client=event.client,
        estimate=event.estimate,
        embedding=event.embedding,
        any_path=event.any_path,
        prompt=words.prompt,
        output_path=words.output_path,
        output_dir=words.output_dir,
        sidecar=event.sidecar,
        request_key=event.request_key,
        source_names=words.sources,
        retry_of=event.retry_of,
        pictures=event.kept,
        rendered=event.rendered,
    )


def _imported(event: HistoryImported, commit: Commit) -> Job:
    words = commit.words or NO_WORDS
    paths: tuple[str | None, ...] = words.paths or (None,) * len(event.images)
    return Job(
        id=event.job,
        stage=Stage.COMPLETED,
        position=commit.position,
        requested_position=commit.position,
        requested_at=event.created_at,
        changed_at=commit.at,
        request=event.request,
        account=Account(backend="openai"),
        client=Client(name=event.source),
        estimate=CostRange(low=None, high=None, table=event.cost.table),
        embedding="off",
        any_path=False,
        prompt=words.prompt,
        output_path=None,
        output_dir=None,
        billed="yes",
        images=_located([image for image in event.images if image], [p for p, i in zip(paths, event.images, strict=True) if i]),
        usage=event.usage,
        cost=event.cost,
        imported=event.source,
        missing=tuple(path for path, image in zip(paths, event.images, strict=True) if image is None and path),
    )


def _located(
    images: Sequence[ImageFile], paths: Sequence[str | None], sidecars: Sequence[str | None] = ()
) -> tuple[StoredImage, ...]:
    return tuple(
        StoredImage.of(image, path, sidecar)
        for image, path, sidecar in zip(images, paths, sidecars or (None,) * len(images), strict=True)
    )


def advance(job: Job, event: JobEvent, commit: Commit) -> Job:
    """The job after one more fact.

    Raises:
        IllegalTransition: the fact may not follow; a bug, or a log that was not written by us.
    """
    key: tuple[Stage, type[Event]] = (job.stage, type(event))
    stage = _NEXT.get(key)
    if stage is None and job.billed == "unknown":
        stage = _AFTER_UNKNOWN.get(key)
    if stage is None and job.puts_what_was_kept:
        stage = _FROM_KEPT.get(key)
    if stage is None:
        raise IllegalTransition(f"job {job.id} is {job.stage.value}; {type(event).__name__} may not follow")
    changes = _changes(job, event, commit.words or NO_WORDS, commit.at)
    return msgspec.structs.replace(job, stage=stage, position=commit.position, changed_at=commit.at, **changes)


def amend(job: Job, event: LaterEvent, commit: Commit) -> Job:
    """A job that is over, after one more fact.

    Raises:
        IllegalTransition: it is not over, or there was nothing to say; as for `advance`.
    """
    if not job.state.is_over:
        raise IllegalTransition(f"job {job.id} is {job.stage.value}; {type(event).__name__} may not follow yet")
    if isinstance(event, WordsForgotten):
        return _without_words(job, commit.at)
    if job.billed != "unknown":
        raise IllegalTransition(f"job {job.id} is known to be billed: {job.billed}; JobResolved may not follow")
    return msgspec.structs.replace(job, billed=event.billed, cost=event.cost, position=commit.position, changed_at=commit.at)


def _without_words(job: Job, at: datetime) -> Job:
    """The job as a log tells it whose words of it are gone."""
    return msgspec.structs.replace(wordless(job), forgotten_at=job.forgotten_at or at)


def wordless(job: Job) -> Job:
    return msgspec.structs.replace(
        job,
        prompt=None,
        output_path=None,
        output_dir=None,
        images=tuple(msgspec.structs.replace(image, path=None, sidecar=None) for image in job.images),
        error="",
        source_names=(),
        missing=(),
    )


def _changes(job: Job, event: JobEvent, words: Words, at: datetime) -> dict[str, object]:
    """What the fact says of the job beyond its stage."""
    match event:
        case JobStarted() | JobRequested() | HistoryImported():
            return {}
        case AttemptStarted():
            begun = {"attempts": event.attempt, "client_request_id": event.client_request_id, "previews": ()}
            return {**begun, "request_id": "", "retry_at": None}
        case PartialReceived():
            return {"previews": (*job.previews, event.picture)}
        case AttemptFailed():
            return {
                "billed": _worse(job.billed, event.billed),
                "error_code": event.code,
                "error": words.message or "",
                "request_id": event.request_id,
                "usage": event.usage,
                "cost": event.cost,
                "retry_at": None if event.wait_seconds is None else at + timedelta(seconds=event.wait_seconds),
                "moderation_stage": event.moderation_stage,
                "categories": event.categories,
            }
        case ReplyReceived():
            return {
                "billed": "no" if job.account.backend == "offline" else "yes",
                "pictures": event.pictures,
                "usage": event.usage,
                "cost": event.cost,
                "rendered": event.rendered,
                "request_id": event.request_id,
                "error_code": "",
                "error": "",
                "retry_at": None,
                "moderation_stage": "",
                "categories": (),
            }
        case JobCompleted():
            return {"images": _saved(job, event, words)}
        case JobFailed():
            failed = {"billed": _worse(job.billed, event.billed), "error_code": event.code, "error": words.message or ""}
            return {**failed, "retry_at": None, "images": tuple(map(_only_stored, job.pictures))}
        case JobInterrupted():
            billed = "no" if job.account.backend == "offline" else "unknown"
            return {"billed": billed, "error_code": event.code, "error": words.message or "", "retry_at": None}
        case JobCancelRequested():
            return {"cancel_requested": True}
        case JobCancelled():
            return {"billed": _worse(job.billed, event.billed), "retry_at": None}


def _saved(job: Job, event: JobCompleted, words: Words) -> tuple[StoredImage, ...]:
    paths: tuple[str | None, ...] = words.paths or (None,) * len(event.images)
    if len(paths) != len(event.images) or len(words.sidecars) not in (0, len(paths)):
        raise IllegalTransition(
            f"job {job.id} completed with {len(event.images)} images, {len(paths)} paths and {len(words.sidecars)} sidecars"
        )
    return _located(event.images, paths, words.sidecars)


def _only_stored(picture: Picture) -> StoredImage:
    return StoredImage(path=None, original=picture.sha256, **msgspec.structs.asdict(picture))


def _worse(a: Billed, b: Billed) -> Billed:
    order: tuple[Billed, ...] = ("no", "unknown", "yes")
    return max(a, b, key=order.index)


class JobBoard:
    """Every job that is not over, and those over that nobody has dropped yet. Changes only through `apply`."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._jobs: dict[JobId, Job] = {job.id: job for job in jobs}

    def __iter__(self) -> Iterator[Job]:
        """In the order in which they were requested."""
        return iter(self._jobs.values())

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, job: JobId) -> Job | None:
        return self._jobs.get(job)

    def apply(self, commit: Commit) -> tuple[JobId, ...]:
        """Follow one commit; returns the jobs it touched, each once.

        Raises:
            IllegalTransition: see `advance`; the board is then as it was before the commit.
        """
        touched: dict[JobId, Job] = {}
        for event in commit.events:
            if not isinstance(event, FactOfJob):
                if isinstance(event, FactOfOver) and (over := self._jobs.get(event.job)) is not None:
                    touched[event.job] = amend(over, event, commit)
                continue
            if isinstance(event, JobRequested | HistoryImported):
                if event.job in self._jobs or event.job in touched:
                    raise IllegalTransition(f"job {event.job} was requested twice")
                begin = _requested(event, commit) if isinstance(event, JobRequested) else _imported(event, commit)
                touched[event.job] = begin
                continue
            job = touched.get(event.job) or self._jobs.get(event.job)
            if job is None:
                raise IllegalTransition(f"{type(event).__name__} of job {event.job}, which is not on the board")
            touched[event.job] = advance(job, event, commit)
        self._jobs.update(touched)
        return tuple(touched)

    def drop_over(self, up_to: Position) -> None:
        """Forget the jobs that were over at `up_to`; the index holds them."""
        for job in [job for job in self if job.state.is_over and job.position <= up_to]:
            del self._jobs[job.id]
