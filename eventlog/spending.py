"""What was spent, by day, model, client and key, and what running jobs may still cost.

Rule: integer micro-dollars; unknown is counted, never added as zero. Changes only through `apply`.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC

import msgspec

from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Commit,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobRequested,
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

    `unpriced` counts what has no known price: it is in neither sum.
    """

    settled: MicroUSD = MicroUSD(0)
    possibly_billed: MicroUSD = MicroUSD(0)
    unpriced: int = 0
    images: int = 0
    replies: int = 0


class Reservation(Value, frozen=True):
    """What a job that is not over may cost; `high` is None if there is no published bound.

    `attempting`: a request is under way. `answered`: its reply is accounted, nothing is reserved any more.
    """

    model: str
    client: str
    key: str
    high: MicroUSD | None
    attempting: bool = False
    answered: bool = False


class Spending:
    def __init__(
        self, amounts: Mapping[Period, Amounts] | None = None, reservations: Mapping[JobId, Reservation] | None = None
    ) -> None:
        self._amounts = dict(amounts or {})
        self._reservations = dict(reservations or {})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spending):
            return NotImplemented
        return self._amounts == other._amounts and self._reservations == other._reservations

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> "Spending":
        return Spending(self._amounts, self._reservations)

    def rows(self) -> Iterator[tuple[Period, Amounts]]:
        return iter(self._amounts.items())

    @property
    def reserved(self) -> MicroUSD:
        """The upper estimates of all jobs that have not been answered; those without a bound are left out."""
        return MicroUSD(sum(r.high or 0 for r in self._reservations.values() if not r.answered))

    def apply(self, commit: Commit) -> tuple[Period, ...]:
        """Follow one commit; returns the periods it changed."""
        touched = []
        for event in commit.events:
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
                    touched.append(self._add(self._reservations[event.job], commit, lost))
                case AttemptFailed():
                    self._note(event.job, attempting=False)
                    touched.append(self._suspect(event.job, commit))
                case JobInterrupted() | JobCancelled(billed="unknown" | "yes"):
                    if self._reservations[event.job].attempting:  # one that ended was counted at its end
                        touched.append(self._suspect(event.job, commit))
                    del self._reservations[event.job]
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
        return self._add(
            reserved,
            commit,
            Amounts(
                settled=amount or MicroUSD(0),
                unpriced=int(amount is None),
                images=len(event.pictures),
                replies=1,
            ),
        )

    def _suspect(self, job: JobId, commit: Commit) -> Period:
        reserved = self._reservations[job]
        return self._add(
            reserved,
            commit,
            Amounts(possibly_billed=reserved.high or MicroUSD(0), unpriced=int(reserved.high is None)),
        )

    def _add(self, reserved: Reservation, commit: Commit, more: Amounts) -> Period:
        period = Period(
            day=commit.at.astimezone(UTC).date().isoformat(),
            model=reserved.model,
            client=reserved.client,
            key=reserved.key,
        )
        before = self._amounts.get(period, Amounts())
        self._amounts[period] = Amounts(
            settled=MicroUSD(before.settled + more.settled),
            possibly_billed=MicroUSD(before.possibly_billed + more.possibly_billed),
            unpriced=before.unpriced + more.unpriced,
            images=before.images + more.images,
            replies=before.replies + more.replies,
        )
        return period


def _reservation(model: str, client: str, account: Account, estimate: CostRange) -> Reservation:
    high = MicroUSD(0) if account.backend == "offline" else estimate.high
    return Reservation(model=model, client=client, key=account.key, high=high)


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
