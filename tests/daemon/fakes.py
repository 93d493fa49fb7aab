"""Small stand-ins with the real signatures, and a ledger on a real log that runs inline."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import trio

from daemon.ledger import Decision, Facts, Ledger, RunBlocking, Views
from eventlog.disk import Disk
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobStarted,
    ReplyReceived,
)
from eventlog.index import Index
from eventlog.log import EventLog
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
    Sha256,
    Words,
)

T = TypeVar("T")
OFFLINE = Account(backend="offline")
PAYING = Account(backend="openai", key="0123456789ab", base_url="https://api.openai.com/v1")
HASH = Sha256("ab" * 32)


class Calendar:
    """A clock that moves a second at each look, and may jump."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 22, 10, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at


async def inline(function: Callable[[], T]) -> T:
    await trio.lowlevel.checkpoint()
    return function()


class Opened:
    """A ledger with everything below it."""

    def __init__(self, home: Path, run_blocking: RunBlocking, disk: Disk | None) -> None:
        self.log = EventLog(home / "events", software="test", disk=disk)
        self.log.lock()
        self.index = Index.open(home / "index.sqlite")
        self.log.recover(self.index.mark, self.index.fold)
        self.calendar = Calendar()
        self.ledger = Ledger(self.log, self.index, now=self.calendar, salt=lambda: "00" * 16, run_blocking=run_blocking)


@contextmanager
def opened(home: Path, run_blocking: RunBlocking = inline, disk: Disk | None = None) -> Iterator[Opened]:
    house = Opened(home, run_blocking, disk)
    try:
        yield house
    finally:
        house.log.close()
        house.index.close()


def run(main: Callable[[], object]) -> None:
    """Runs an async test on a clock that jumps over every wait; a real deadlock ends as TooSlowError."""

    async def bounded() -> None:
        with trio.fail_after(3600):
            await main()  # type: ignore[misc]

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def say(*events: Event, **words: object) -> Decision:
    spoken = Words(salt="", **words) if words else None  # type: ignore[arg-type]

    def decide(views: Views) -> Facts:
        return Facts(events, spoken)

    return decide


def requested(job: str, account: Account = PAYING, **changes: object) -> JobRequested:
    return JobRequested(
        job=JobId(job),
        request=ImageRequest(tool="generate_image", model="gpt-image-2", **changes),  # type: ignore[arg-type]
        account=account,
        client=Client(name="test"),
        estimate=CostRange(low=MicroUSD(100), high=MicroUSD(900), table="t"),
    )


def started(job: str) -> JobStarted:
    return JobStarted(job=JobId(job))


def attempt(job: str, number: int = 1) -> AttemptStarted:
    return AttemptStarted(job=JobId(job), attempt=number, client_request_id=f"{job}-{number}", body_sha256=HASH)


def failed_attempt(job: str, number: int = 1, billed: str = "no", code: str = "rate_limited") -> AttemptFailed:
    return AttemptFailed(job=JobId(job), attempt=number, code=code, billed=billed)  # type: ignore[arg-type]


def reply(job: str, number: int = 1, amount: int | None = 500) -> ReplyReceived:
    cost = Cost(
        amount=None if amount is None else MicroUSD(amount), basis="usage" if amount is not None else "unknown", table="t"
    )
    picture = Picture(sha256=HASH, size_bytes=3, width=1, height=1, format="png")
    return ReplyReceived(job=JobId(job), attempt=number, pictures=(picture,), cost=cost)


def completed(job: str) -> JobCompleted:
    image = ImageFile(sha256=HASH, size_bytes=3, width=1, height=1, format="png", original=HASH)
    return JobCompleted(job=JobId(job), images=(image,))


def failed(job: str) -> JobFailed:
    return JobFailed(job=JobId(job), code="bad_request", billed="no")


def interrupted(job: str) -> JobInterrupted:
    return JobInterrupted(job=JobId(job))


def cancel_requested(job: str) -> JobCancelRequested:
    return JobCancelRequested(job=JobId(job))


def cancelled(job: str, billed: str = "no") -> JobCancelled:
    return JobCancelled(job=JobId(job), billed=billed)  # type: ignore[arg-type]
