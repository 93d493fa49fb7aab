"""The rules, pure: each function returns a decision, which looks at the views and says what happens next.

Rule: no clock, no chance, no disk in here; ids and texts come from outside. `NOTHING` means that there is
nothing to say, `Refused` means no. Where a job has moved on since the caller looked, the decision looks again.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from daemon import budgets, pace
from daemon.errors import AlreadyOrdered, Refused, Unapproved
from daemon.ledger import NOTHING, Decision, Facts, Views
from daemon.pace import Pace
from daemon.untold import Untold
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    CapsChanged,
    DaemonStarted,
    DaemonStopped,
    Event,
    HistoryImported,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobResolved,
    JobStarted,
    PartialReceived,
    ReplyReceived,
    RequestReceived,
    WordsForgotten,
)
from eventlog.jobs import Job, JobBoard, Stage
from eventlog.values import Account, Billed, Caps, Client, JobId, JobState, Words

PENDING_JOBS_MAX = 500  # a runaway agent is stopped here; no person waits for five hundred pictures

OUTCOME_UNKNOWN = (
    "The daemon stopped before the answer arrived, so OpenAI may have charged for this picture. "
    "It is not asked for again by itself."
)
OUTCOME_UNKNOWN_OFFLINE = (
    "The daemon stopped before the offline picture was drawn. Nothing was charged; ask again if you still want it."
)


def start_daemon(software: str, torn_bytes: int) -> Decision:
    return lambda views: Facts((DaemonStarted(software=software, torn_bytes=torn_bytes),))


def stop_daemon(reason: str) -> Decision:
    return lambda views: Facts((DaemonStopped(reason=reason),))


def receive_request(received: RequestReceived, words: Words) -> Decision:
    """On a full disk without its words: what room is left belongs to the jobs under way."""
    return lambda views: Facts((received,), None if views.log_full else words)


class Terms(NamedTuple):
    """What an order has to keep to. With `untold` the same order twice is one job; `caps_known` are this client's last ones."""

    now: datetime
    untold: Untold | None = None
    caps: Caps = Caps()
    caps_known: Caps = Caps()
    pace: Pace = Pace()


def request_job(received: RequestReceived, requested: JobRequested, words: Words, terms: Terms) -> Decision:
    """The request and the job it orders are one decision, and its upper estimate is reserved by it.

    Raises:
        AlreadyOrdered
        Unapproved
    """

    def decide(views: Views) -> Facts:
        untold = terms.untold
        if untold is not None and (same := untold.find(views.board, requested, words)) is not None:
            raise AlreadyOrdered(same)
        if requested.account.backend != "offline":
            if received.door == "mcp" and not requested.kept:
                pace.insist(terms.pace, views.recent, requested, words, terms.now)
            budgets.insist_on_room(terms.caps, views.spending, requested.estimate.high, terms.now)
            if not requested.approved_by and (question := budgets.needs_approval(terms.caps, requested.estimate.high)):
                raise Unapproved(question)
        if views.log_full:
            raise Refused(
                "The disk that holds the event log is full, so no new picture is started. Free some space and ask again.",
                code="no_space",
            )
        if sum(job.state is JobState.PENDING for job in views.board) >= PENDING_JOBS_MAX:
            raise Refused(
                f"{PENDING_JOBS_MAX} pictures are already waiting to be drawn; wait for some of them or cancel them.",
                code="too_many_jobs",
            )
        changed = (CapsChanged(client=requested.client, caps=terms.caps),) if terms.caps != terms.caps_known else ()
        return Facts((received, *changed, requested), words)

    return decide


def import_generation(imported: HistoryImported, words: Words) -> Decision:
    """Nothing if the board has it already."""

    def decide(views: Views) -> Facts:
        if views.log_full:
            raise Refused(
                "The disk that holds the event log is full, so nothing more is imported. Free some space and ask again.",
                code="no_space",
            )
        return NOTHING if views.board.get(imported.job) else Facts((imported,), words)

    return decide


def forget_words(forgotten: WordsForgotten) -> Decision:
    """Of a job that is over. Every segment that held such a word is written anew, which takes room on the disk."""

    def decide(views: Views) -> Facts:
        if (job := views.board.get(forgotten.job)) is not None:
            insist_on_over(job)
        if views.log_full:
            raise Refused(
                "The disk that holds the event log is full, and forgetting takes room for a copy. Free some space and ask again.",
                code="no_space",
            )
        return Facts((forgotten,))

    return decide


def resolve_job(resolved: JobResolved) -> Decision:
    """What its owner found on the bill about a job that may have been billed."""

    def decide(views: Views) -> Facts:
        if resolved.job not in views.spending.suspicions:
            raise Refused(
                f"Whether job {resolved.job} was billed is known already; get_spending lists those of which it is not.",
                code="already_known",
                argument="job_id",
            )
        return Facts((resolved,))

    return decide


def insist_on_over(job: Job) -> None:
    """
    Raises:
        Refused: it still needs its words.
    """
    if not job.state.is_over:
        raise Refused(
            f"Job {job.id} is {job.state.value}; wait until it is over, or cancel it, and forget it then.",
            code="not_over",
            argument="uuid",
        )


class Places(Protocol):
    """How many jobs may run at once: of one account - 0 for one that has to wait - and in all."""

    def running_max(self, account: Account, /) -> int: ...

    @property
    def total_max(self) -> int: ...


def plan(board: JobBoard, places: Places, served: Sequence[Client]) -> tuple[Job, ...]:
    """The pending jobs that may start now: by turns those of each client, and of each client the oldest first.

    `served` are clients in the order in which their last job was started; whoever is not among them comes first. What
    runs of an account that has to wait takes no place in the whole.
    """
    running = Counter(job.account for job in board if job.state is JobState.RUNNING)
    total = sum(count for account, count in running.items() if places.running_max(account))
    turns = list(served)
    waiting = [job for job in board if job.state is JobState.PENDING]
    startable: list[Job] = []
    while total < places.total_max:
        ready = [job for job in waiting if running[job.account] < places.running_max(job.account)]
        if not ready:
            break
        chosen = min(ready, key=lambda job: turns.index(job.client) if job.client in turns else -1)
        startable.append(chosen)
        waiting.remove(chosen)
        take_turn(turns, chosen.client)
        running[chosen.account] += 1
        total += 1
    return tuple(startable)


def take_turn(turns: list[Client], client: Client) -> None:
    """Now it is the last that was served."""
    if client in turns:
        turns.remove(client)
    turns.append(client)


def start_job(job_id: JobId) -> Decision:
    """Nothing if it was cancelled meanwhile."""
    return _if_stage(job_id, {Stage.REQUESTED: lambda job: Facts((JobStarted(job=job.id),))})


def start_attempt(started: AttemptStarted, attempts_max: int) -> Decision:
    """Nothing if it is not wanted any more, or while so many attempts of all jobs together are under way."""

    def decide(views: Views) -> Facts:
        job = _live(views, started.job)
        if job.cancel_requested or sum(other.stage is Stage.ATTEMPTING for other in views.board) >= attempts_max:
            return NOTHING
        return Facts((started,))

    return decide


def fail_attempt(failed: AttemptFailed, message: str, *, final: bool) -> Decision:
    """The end of an attempt and, if it was the last, of its job, in one commit."""

    def decide(views: Views) -> Facts:
        events: tuple[Event, ...] = (failed,)
        if failed.billed == "unknown":
            events += (JobInterrupted(job=failed.job, code=failed.code),)
        elif final:
            events += (JobFailed(job=failed.job, code=failed.code, billed=failed.billed),)
        return Facts(events, Words(salt="", message=message))

    return decide


def receive_partial(partial: PartialReceived) -> Decision:
    """Nothing once the attempt is over, or on a full disk: what room is left belongs to the pictures themselves."""

    def decide(views: Views) -> Facts:
        job = views.board.get(partial.job)
        if views.log_full or job is None or (job.stage, job.attempts) != (Stage.ATTEMPTING, partial.attempt):
            return NOTHING
        return Facts((partial,))

    return decide


def receive_reply(reply: ReplyReceived) -> Decision:
    return lambda views: Facts((reply,))


def complete_job(completed: JobCompleted, words: Words) -> Decision:
    return lambda views: Facts((completed,), words)


def fail_job(job_id: JobId, code: str, billed: Billed, message: str) -> Decision:
    return lambda views: Facts((JobFailed(job=job_id, code=code, billed=billed),), Words(salt="", message=message))


def cancel_job(job_id: JobId) -> Decision:
    """A pending job is cancelled at once and costs nothing; a running one is asked to stop."""

    def decide(views: Views) -> Facts:
        match views.board.get(job_id):
            case None:
                raise Refused(f"There is no job {job_id} that could be cancelled.", code="no_such_job", argument="job_id")
            case Job(state=JobState.PENDING):
                return Facts((JobCancelled(job=job_id),))
            case Job(state=JobState.RUNNING, cancel_requested=already):
                return NOTHING if already else Facts((JobCancelRequested(job=job_id),))
            case over:
                raise Refused(already_over(over), code="already_over", argument="job_id")

    return decide


def already_over(job: Job) -> str:
    kept = " Its pictures are kept." if job.images else ""
    return f"Job {job.id} has already {_ENDED[job.state]} and cannot be cancelled.{kept}"


_ENDED = {
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "been cancelled",
    JobState.INTERRUPTED: "been interrupted",
}


def leave_job(job_id: JobId) -> Decision:
    """What a worker says on its way out, however it got there.

    Nothing if the job is over, or if it can simply go on at the next start. An attempt that is left open may
    have been billed: cancelled if somebody wished it, otherwise interrupted.
    """

    def between_attempts(job: Job) -> Facts:
        return Facts((JobCancelled(job=job.id, billed=job.billed),)) if job.cancel_requested else NOTHING

    def inside_attempt(job: Job) -> Facts:
        offline = job.account.backend == "offline"
        if job.cancel_requested:
            return Facts((JobCancelled(job=job.id, billed="no" if offline else "unknown"),))
        if offline:
            interrupted = JobInterrupted(job=job.id, code="offline_interrupted")
            return Facts((interrupted,), Words(salt="", message=OUTCOME_UNKNOWN_OFFLINE))
        return Facts((JobInterrupted(job=job.id),), Words(salt="", message=OUTCOME_UNKNOWN))

    return _if_stage(job_id, {Stage.STARTED: between_attempts, Stage.ATTEMPTING: inside_attempt})


def recover(job_id: JobId, spooled: ReplyReceived | None) -> Decision:
    """Put a job right that was inside an attempt when the daemon died: its reply was kept, or nobody knows."""
    if spooled is None:
        return leave_job(job_id)
    return _if_stage(job_id, {Stage.ATTEMPTING: lambda job: Facts((spooled,))})


def _live(views: Views, job_id: JobId) -> Job:
    job = views.board.get(job_id)
    if job is None:
        raise AssertionError(f"job {job_id} left the board while somebody worked on it")
    return job


def _if_stage(job_id: JobId, by_stage: Mapping[Stage, Callable[[Job], Facts]]) -> Decision:
    def decide(views: Views) -> Facts:
        job = views.board.get(job_id)
        say = by_stage.get(job.stage) if job else None
        return say(job) if job and say else NOTHING

    return decide
