"""Reads the log and believes nothing: verification, and the story of a job. Beside a running daemon or on a copy."""

from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import NamedTuple

from eventlog.errors import IllegalTransition, LogCorrupt, LogTooNew
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Commit,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobStarted,
    ReplyReceived,
)
from eventlog.jobs import JobBoard
from eventlog.segments import START, read_log
from eventlog.values import JobId, MicroUSD, Position, Sha256, Words

PROMPT_SHOWN_MAX = 200


class Fault(NamedTuple):
    position: int
    offset: int
    sentence: str


class Verification(NamedTuple):
    """`fault` is the first one found; what stands before it is sound."""

    commits: int
    head: Position
    head_hash: Sha256
    fault: Fault | None


def verify(directory: Path) -> Verification:
    """Every hash, every link of the chain, every word against its digest, every transition of every job."""
    board = JobBoard()
    mark = START
    commits = 0
    fault = None
    try:
        for commit, mark, forgotten in read_log(directory, None):
            commits += 1
            if forgotten:
                fault = Fault(mark.position, mark.offset, f"the words of commit {mark.position} are gone, and no fact says why")
                break
            board.apply(commit)
            board.drop_over(commit.position)
    except IllegalTransition as exc:
        fault = Fault(mark.position, mark.offset, str(exc))
    except LogCorrupt as exc:
        fault = Fault(exc.position, exc.offset, str(exc))
    except LogTooNew as exc:
        fault = Fault(mark.position + 1, mark.offset, str(exc))
    return Verification(commits, mark.position, mark.hash, fault)


def narrate(directory: Path, job: JobId) -> Iterator[str]:
    """One line for each fact of one job, in the order of the log.

    Raises:
        LogCorrupt, LogTooNew
    """
    for commit, _, _ in read_log(directory, None):
        for event in commit.events:
            if isinstance(event, JobEvent) and event.job == job:
                at = commit.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
                yield f"{at} #{commit.position} {_told(event, commit)}"


def _told(event: JobEvent, commit: Commit) -> str:
    words = commit.words or Words(salt="")
    match event:
        case JobRequested(request=r):
            pictures = "1 picture" if r.count == 1 else f"{r.count} pictures"
            return (
                f"requested by {event.client.name}: {pictures}, {r.model}, {r.size}, {r.quality}, {r.output_format}; "
                f"estimate {_money(event.estimate.low)} to {_money(event.estimate.high)}; “{visible(words.prompt)}”"
            )
        case JobStarted():
            return "started"
        case AttemptStarted():
            return f"attempt {event.attempt} started, as {event.client_request_id}; body {event.body_sha256[:16]}…"
        case AttemptFailed():
            return f"attempt {event.attempt} failed: {event.code}, billed: {event.billed}; {visible(words.message)}"
        case ReplyReceived():
            cost = f"{_money(event.cost.amount)} ({event.cost.basis})"
            return f"reply received: {len(event.pictures)} in the store, cost {cost}"
        case JobCompleted():
            return "completed: " + ", ".join(visible(path) for path in words.paths)
        case JobFailed():
            return f"failed: {event.code}, billed: {event.billed}; {visible(words.message)}"
        case JobCancelRequested():
            return "somebody asked to cancel it"
        case JobCancelled():
            return f"cancelled, billed: {event.billed}"
        case JobInterrupted():
            return f"interrupted: {event.code}; {visible(words.message)}"


def _money(amount: MicroUSD | None) -> str:
    return "unknown" if amount is None else f"${amount // 1_000_000}.{amount % 1_000_000:06}"


def visible(text: str | None) -> str:
    """Text from outside, short and harmless in a terminal: what does not print is shown as its code point."""
    if text is None:
        return "(forgotten)"
    shown = "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in text[:PROMPT_SHOWN_MAX])
    return shown + ("…" if len(text) > PROMPT_SHOWN_MAX else "")
