"""Facts, commits and logs for tests: the smallest true stories, and every legal one.

`commits_of` turns any list of numbers into a legal history, so that a property test may draw numbers and
shrink them without knowing what may follow what.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from eventlog.disk import Disk
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Commit,
    DaemonStarted,
    Event,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobResolved,
    JobStarted,
    ReplyReceived,
    RequestReceived,
)
from eventlog.framing import draft
from eventlog.index import Index
from eventlog.jobs import Job, JobBoard, Stage
from eventlog.log import EventLog, Recovery
from eventlog.segments import Located, Mark
from eventlog.spending import Spending
from eventlog.values import (
    Account,
    Client,
    Cost,
    CostRange,
    ImageFile,
    ImageRequest,
    JobId,
    MicroUSD,
    Picture,
    Position,
    Sha256,
    Usage,
    Words,
)

DAWN = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SALT = "00112233445566778899aabbccddeeff"
DIGEST = Sha256("ab" * 32)
PROMPTS = ("A fox in the snow", "逆光の猫、冬の朝", 'it is 100% "quoted"_', "ｶﾞﾗｽの鳥", "Straße 🦊", "")
MODELS = ("gpt-image-2.5", "gpt-image-2.5-flare")
TOOLS = ("generate_image", "edit_image", "transform_image")

Step = tuple[tuple[Event, ...], Words | None]


def commit(position: int, *events: Event, words: Words | None = None, at: datetime | None = None) -> Commit:
    """Commits are an hour apart, so that a history of some length crosses midnight."""
    at = at or DAWN + timedelta(hours=position, microseconds=position)
    return Commit(position=Position(position), at=at, events=events or (DaemonStarted(software="0.1.0"),), words=words)


def job_id(number: int) -> JobId:
    return JobId(f"01a20000-0000-7000-8000-{number:012x}")


def requested(
    job: JobId,
    *,
    tool: int = 0,
    model: int = 0,
    high: int | None = 13_000,
    offline: bool = False,
    client: str = "a client",
) -> JobRequested:
    return JobRequested(
        job=job,
        request=ImageRequest(tool=TOOLS[tool], model=MODELS[model], size="1024x1024", quality="medium"),  # type: ignore[arg-type]
        account=Account(backend="offline") if offline else Account(backend="openai", key="k1"),
        client=Client(name=client, version="1"),
        estimate=CostRange(low=MicroUSD(9_000), high=None if high is None else MicroUSD(high), table="2026-11"),
    )


def attempt(job: JobId, number: int = 1) -> AttemptStarted:
    return AttemptStarted(job=job, attempt=number, client_request_id=f"request-{number}", body_sha256=DIGEST)


def reply(job: JobId, number: int = 1, *, amount: int | None = 11_000, basis: str = "usage") -> ReplyReceived:
    return ReplyReceived(
        job=job,
        attempt=number,
        pictures=(Picture(sha256=DIGEST, size_bytes=9, width=1024, height=1024, format="png"),),
        cost=Cost(amount=None if amount is None else MicroUSD(amount), basis=basis, table="2026-11"),  # type: ignore[arg-type]
        usage=Usage(input_tokens=1, output_tokens=2, total_tokens=3),
        request_id="req_1",
    )


def completed(job: JobId) -> JobCompleted:
    image = ImageFile(sha256=DIGEST, size_bytes=9, width=1024, height=1024, format="png", original=DIGEST)
    return JobCompleted(job=job, images=(image,))


def resolved(job: JobId, billed: Literal["no", "yes"], amount: int | None = 8_000) -> JobResolved:
    cost = Cost(amount=None if amount is None else MicroUSD(amount), basis="resolved", table="2026-11")
    return JobResolved(job=job, billed=billed, client=Client(name="a client"), cost=cost if billed == "yes" else None)


def said(**words: object) -> Words:
    return Words(salt=SALT, **words)  # type: ignore[arg-type]


def one_job(first: int = 2, *, number: int = 1, prompt: str = PROMPTS[0]) -> list[Commit]:
    """A generation that goes well: five commits from position `first` on."""
    job = job_id(number)
    return [
        commit(first, requested(job), words=said(prompt=prompt, output_path="fox in snow.png")),
        commit(first + 1, JobStarted(job=job)),
        commit(first + 2, attempt(job)),
        commit(first + 3, reply(job)),
        commit(first + 4, completed(job), words=said(paths=("/pictures/fox in snow.png",))),
    ]


def commits_of(choices: Sequence[int], first: int = 2) -> list[Commit]:
    """A legal history: each number picks one of the things that may happen next."""
    board, spending = JobBoard(), Spending()
    commits: list[Commit] = []
    for choice in choices:
        which, how = divmod(choice, 64)
        live = [job for job in board if not job.state.is_over]
        doubtful = [job for job in board if job.state.is_over and job.id in spending.suspicions and job.billed == "unknown"]
        pick = which % (len(live) + 2 + bool(doubtful))
        if pick < len(live):
            steps = possible_steps(live[pick])
            events, words = steps[how % len(steps)]
        elif pick == len(live) + 2:
            events, words = (resolved(doubtful[how % len(doubtful)].id, "no" if how % 3 else "yes"),), None
        elif pick == len(live):
            events, words = _new_job(len(board), how)
        else:
            events, words = (RequestReceived(operation="list_jobs", door="mcp", client=Client(name="c")),), None
        after = commit(first + len(commits), *events, words=words)
        board.apply(after)
        spending.apply(after)
        commits.append(after)
    return commits


def _new_job(number: int, how: int) -> Step:
    event = requested(
        job_id(number),
        tool=how % 3,
        model=how % 2,
        high=None if how % 7 == 0 else 13_000,
        offline=how % 5 == 0,
        client="a client" if how % 3 else "another",
    )
    return (event,), None if how % 11 == 0 else said(prompt=PROMPTS[how % len(PROMPTS)])


def possible_steps(job: Job) -> list[Step]:
    """Everything that may follow, alone or together with what usually shares its commit."""
    over = said(message="no more")
    failed = JobFailed(job=job.id, code="gave_up", billed=job.billed)
    cancel_requested: Step = (JobCancelRequested(job=job.id),), None

    def attempt_failed(billed: str, cost: Cost | None = None) -> AttemptFailed:
        return AttemptFailed(job=job.id, attempt=job.attempts, code="reset", billed=billed, cost=cost)  # type: ignore[arg-type]

    by_stage: dict[Stage, list[Step]] = {
        Stage.REQUESTED: [((JobStarted(job=job.id),), None), ((failed,), over), ((JobCancelled(job=job.id),), None)],
        Stage.STARTED: [
            ((attempt(job.id, job.attempts + 1),), None),
            cancel_requested,
            ((failed,), over),
            ((JobCancelled(job=job.id, billed=job.billed),), None),
        ],
        Stage.ATTEMPTING: [
            ((reply(job.id, job.attempts),), None),
            ((reply(job.id, job.attempts, amount=None, basis="unknown"),), None),
            ((reply(job.id, job.attempts, amount=None, basis="offline"),), None),
            ((attempt_failed("no"),), over),
            ((attempt_failed("unknown"),), over),
            ((attempt_failed("yes"),), over),
            ((attempt_failed("yes", Cost(amount=MicroUSD(7_000), basis="usage", table="t")), failed), over),
            ((attempt_failed("unknown"), JobInterrupted(job=job.id)), over),
            ((JobInterrupted(job=job.id),), over),
            ((JobCancelled(job=job.id),), None),
            ((JobCancelled(job=job.id, billed="unknown"),), None),
            cancel_requested,
        ],
        Stage.REPLIED: [
            ((completed(job.id),), said(paths=("/pictures/a.png",))),
            ((completed(job.id),), None),
            ((failed,), over),
            cancel_requested,
        ],
    }
    steps = by_stage[job.stage]
    if job.stage is Stage.STARTED and job.billed == "unknown":
        steps.append(((JobInterrupted(job=job.id),), over))
    if job.billed == "yes":  # what was surely billed is not in doubt, whatever becomes of the next attempt
        steps = [(events, words) for events, words in steps if not (len(events) == 2 and isinstance(events[1], JobInterrupted))]
    return steps


def opened(
    directory: Path, disk: Disk | None = None, *, mark: Mark | None = None, segment_bytes: int = 64 * 1024 * 1024
) -> tuple[EventLog, Recovery, list[Located]]:
    """A log ready for appending, and what it replayed. Whoever calls closes it."""
    log = EventLog(directory, software="0.1.0", disk=disk, segment_bytes=segment_bytes)
    replayed: list[Located] = []
    try:
        log.lock()
        recovery = log.recover(mark, replayed.extend)
    except BaseException:
        log.close()
        raise
    return log, recovery, replayed


def append(log: EventLog, commits: Iterable[Commit]) -> list[Located]:
    """One batch."""
    batch = list(commits)
    marks = log.append([draft(one) for one in batch])
    return [Located(one, mark) for one, mark in zip(batch, marks, strict=True)]


def written(
    directory: Path, batches: Iterable[Sequence[Commit]], disk: Disk | None = None, *, segment_bytes: int = 64 * 1024 * 1024
) -> list[Located]:
    """A log of these batches behind its LogCreated, closed again; all that stands in it."""
    log, _, located = opened(directory, disk, segment_bytes=segment_bytes)
    try:
        for batch in batches:
            located += append(log, batch)
    finally:
        log.close()
    return located


def chunks(items: Sequence[Located], sizes: Iterable[int]) -> list[Sequence[Located]]:
    """`items` cut into pieces of these sizes; what is left is the last piece."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(items[start : start + size])
        start += size
    pieces.append(items[start:])
    return [piece for piece in pieces if piece]


def dump(index: Index) -> tuple[object, ...]:
    """Everything that the file holds, for comparing two of them."""
    tables = ("reached", "job", "image", "spending", "suspicion")
    return tuple(sorted(index._db.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables)


def board_of(commits: Iterable[Commit]) -> dict[JobId, Job]:
    """Every job there ever was, as the board alone would have it."""
    board = JobBoard()
    for one in commits:
        board.apply(one)
    return {job.id: job for job in board}


def each(condition: Callable[[Located], bool], located: Iterable[Located]) -> list[Located]:
    return [one for one in located if condition(one)]
