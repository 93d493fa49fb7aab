"""What was spent, by day, model, client and key, and what running jobs may still cost.

Rule: integer micro-dollars; unknown is counted, never added as zero. Changes only through `apply`.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC

import msgspec

from eventlog.errors import IllegalTransition
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Commit,
    FactOfJob,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobResolved,
    ReplyReceived,
)
from eventlog.jobs import Job, Stage
from eventlog.values import Account, CostRange, JobId, MicroUSD, Value


class Period(Value, frozen=True):
    """A UTC day ("2026-11-22") and for whom. `key` is a fingerprint, empty for the offline backend."""

    day: str
    model: str
    client: str
    key: str


class Amounts(Value, frozen=True):
    """`possibly_billed` is the upper estimate of attempts whose outcome is unknown.

    `unpriced` counts what has no known price: it is in neither sum. `estimated_low` and `estimated_high` are what the
    priced replies in `settled` were estimated at before they were asked for; `unestimated` counts those that had no
    published bound.
    """

    settled: MicroUSD = MicroUSD(0)
    possibly_billed: MicroUSD = MicroUSD(0)
    unpriced: int = 0
    images: int = 0
    replies: int = 0
    estimated_low: MicroUSD = MicroUSD(0)
    estimated_high: MicroUSD = MicroUSD(0)
    unestimated: int = 0


NOTHING = Amounts()


class Suspicion(Value, frozen=True):
    """What an attempt whose outcome is unknown is counted with until somebody resolves its job. `high`: None without a bound."""

    period: Period
    high: MicroUSD | None


class Reservation(Value, frozen=True):
    """What a job that is not over may cost; `low` and `high` are None if there is no published bound.

    `free`: nobody bills it. `attempting`: a request is under way. `answered`: its reply is accounted, nothing is
    reserved any more.
    """

    model: str
    client: str
    key: str
    low: MicroUSD | None
    high: MicroUSD | None
    free: bool = False
    attempting: bool = False
    answered: bool = False


class Spending:
    """`suspicions` are the jobs that may have been billed, each with its attempts that were lost."""

    def __init__(
        self,
        amounts: Mapping[Period, Amounts] | None = None,
        reservations: Mapping[JobId, Reservation] | None = None,
        suspicions: Mapping[JobId, tuple[Suspicion, ...]] | None = None,
    ) -> None:
        self._amounts = dict(amounts or {})
        self._reservations = dict(reservations or {})
        self.suspicions = dict(suspicions or {})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spending):
            return NotImplemented
        return (self._amounts, self._reservations, self.suspicions) == (other._amounts, other._reservations, other.suspicions)

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> "Spending":
        return Spending(self._amounts, self._reservations, self.suspicions)

    def rows(self) -> Iterator[tuple[Period, Amounts]]:
        return iter(self._amounts.items())

    def row(self, period: Period) -> Amounts:
        return self._amounts[period]

    @property
    def reserved(self) -> MicroUSD:
        """The upper estimates of all jobs that have not been answered; those without a bound are left out."""
        return MicroUSD(sum(r.high or 0 for r in self._reservations.values() if not r.answered))

    def spent_in(self, period: str) -> MicroUSD:
        """Settled or possibly billed in a UTC day ("2026-11-22") or month ("2026-11"); what has no known price is left out."""
        rows = (amounts for of, amounts in self._amounts.items() if of.day.startswith(period))
        return MicroUSD(sum(amounts.settled + amounts.possibly_billed for amounts in rows))

    def apply(self, commit: Commit) -> tuple[Period, ...]:
        """Follow one commit, which the board has followed before; returns the periods it changed.

        Raises:
            IllegalTransition: a job was resolved that was in no doubt; a bug, or a log that was not written by us.
        """
        touched = []
        for event in commit.events:
            if not isinstance(event, FactOfJob) and not isinstance(event, JobResolved):
                continue
            match event:
                case JobRequested():
                    self._reservations[event.job] = _reservation(
                        event.request.model, event.client.name, event.account, event.estimate
                    )
                case AttemptStarted():
                    self._note(event.job, attempting=True)
                case ReplyReceived():
                    touched.append(self._settle(event, commit))
                case AttemptFailed(billed="no"):
                    self._note(event.job, attempting=False)
                case AttemptFailed(billed="yes", cost=cost):
                    self._note(event.job, attempting=False)
                    amount = None if cost is None else cost.amount
                    lost = Amounts(settled=amount or MicroUSD(0), unpriced=int(amount is None), replies=1)
                    touched.append(self._add(_period(self._reservations[event.job], commit), lost))
                case AttemptFailed():
                    self._note(event.job, attempting=False)
                    touched.append(self._suspect(event.job, commit))
                case JobInterrupted() | JobCancelled(billed="unknown" | "yes"):
                    if self._reservations[event.job].attempting:  # one that ended was counted at its end
                        touched.append(self._suspect(event.job, commit))
                    del self._reservations[event.job]
                case JobResolved():
                    touched += self._resolve(event)
                case JobCompleted() | JobFailed() | JobCancelled():
                    del self._reservations[event.job]
        return tuple(touched)

    def _note(self, job: JobId, *, attempting: bool, answered: bool = False) -> None:
        before = self._reservations[job]
        self._reservations[job] = msgspec.structs.replace(before, attempting=attempting, answered=answered)

    def _settle(self, event: ReplyReceived, commit: Commit) -> Period:
        reserved = self._reservations[event.job]
        self._note(event.job, attempting=False, answered=True)
        amount = MicroUSD(0) if event.cost.basis == "offline" else event.cost.amount
        priced = amount is not None
        counted = Amounts(
            settled=amount or MicroUSD(0),
            unpriced=int(not priced),
            images=len(event.pictures),
            replies=1,
            estimated_low=(priced and reserved.low) or MicroUSD(0),
            estimated_high=(priced and reserved.high) or MicroUSD(0),
            unestimated=int(priced and reserved.high is None),
        )
        return self._add(_period(reserved, commit), counted)

    def _suspect(self, job: JobId, commit: Commit) -> Period:
        reserved = self._reservations[job]
        period = _period(reserved, commit)
        if not reserved.free:
            self.suspicions[job] = (*self.suspicions.get(job, ()), Suspicion(period=period, high=reserved.high))
        return self._add(period, _suspected(reserved.high))

    def _resolve(self, event: JobResolved) -> list[Period]:
        """In the period in which the doubt arose: that is when OpenAI billed it, if it did."""
        doubts = self.suspicions.pop(event.job, ())
        if not doubts:
            raise IllegalTransition(f"job {event.job} was resolved, but nobody doubted whether it was billed")
        periods = [self._add(doubt.period, _suspected(doubt.high), times=-1) for doubt in doubts]
        if event.billed == "yes":
            amount = None if event.cost is None else event.cost.amount
            self._add(periods[-1], Amounts(settled=amount or MicroUSD(0), unpriced=int(amount is None)))
        return periods

    def _add(self, period: Period, more: Amounts, *, times: int = 1) -> Period:
        before = self._amounts.get(period, NOTHING)
        self._amounts[period] = Amounts(
            settled=MicroUSD(before.settled + times * more.settled),
            possibly_billed=MicroUSD(before.possibly_billed + times * more.possibly_billed),
            unpriced=before.unpriced + times * more.unpriced,
            images=before.images + times * more.images,
            replies=before.replies + times * more.replies,
            estimated_low=MicroUSD(before.estimated_low + times * more.estimated_low),
            estimated_high=MicroUSD(before.estimated_high + times * more.estimated_high),
            unestimated=before.unestimated + times * more.unestimated,
        )
        return period


def _suspected(high: MicroUSD | None) -> Amounts:
    return Amounts(possibly_billed=high or MicroUSD(0), unpriced=int(high is None))


def _period(reserved: Reservation, commit: Commit) -> Period:
    return Period(
        day=commit.at.astimezone(UTC).date().isoformat(),
        model=reserved.model,
        client=reserved.client,
        key=reserved.key,
    )


def _reservation(model: str, client: str, account: Account, estimate: CostRange) -> Reservation:
    free = account.backend == "offline"
    low, high = (MicroUSD(0), MicroUSD(0)) if free else (estimate.low, estimate.high)
    return Reservation(model=model, client=client, key=account.key, low=low, high=high, free=free)


def reservations_of(jobs: Iterable[Job]) -> dict[JobId, Reservation]:
    """The reservations that live jobs hold; what `apply` would have left of them."""
    return {
        job.id: msgspec.structs.replace(
            _reservation(job.request.model, job.client.name, job.account, job.estimate),
            attempting=job.stage is Stage.ATTEMPTING,
            answered=job.stage is Stage.REPLIED,
        )
        for job in jobs
        if not job.state.is_over
    }
