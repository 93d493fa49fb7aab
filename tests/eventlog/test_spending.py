"""Money: every attempt is counted once, unknown is counted and never added, and reservations end with their job."""

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.errors import IllegalTransition
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Commit,
    Event,
    JobCancelled,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobResolved,
    JobStarted,
    ReplyReceived,
)
from eventlog.jobs import JobBoard
from eventlog.spending import Amounts, Period, Spending, reservations_of
from eventlog.values import Billed, Cost, JobId, MicroUSD
from tests.eventlog.builders import DAWN, MODELS, attempt, commit, commits_of, completed, job_id, reply, requested, resolved

JOB = job_id(1)
TODAY = Period(day="2026-11-22", model=MODELS[0], client="a client", key="k1")


def after(*commits_events: tuple[Event, ...], first: JobRequested | None = None) -> Spending:
    spending, board = Spending(), JobBoard()
    story = [(first or requested(JOB),), (JobStarted(job=JOB),), (attempt(JOB),), *commits_events]
    for position, events in enumerate(story, start=2):
        one = commit(position, *events, at=DAWN)
        board.apply(one)
        spending.apply(one)
    return spending


def only(spending: Spending) -> Amounts:
    ((period, amounts),) = spending.rows()
    assert period == TODAY
    return amounts


def failed(billed: Billed, *, number: int = 1, cost: Cost | None = None) -> AttemptFailed:
    return AttemptFailed(job=JOB, attempt=number, code="x", billed=billed, cost=cost)


def test_a_reply_settles_and_ends_the_reservation() -> None:
    assert after().reserved == 13_000 and not list(after().rows())
    spending = after((reply(JOB),))
    estimated = {"estimated_low": MicroUSD(9_000), "estimated_high": MicroUSD(13_000)}
    assert only(spending) == Amounts(settled=MicroUSD(11_000), images=1, replies=1, **estimated) and spending.reserved == 0
    assert only(after((reply(JOB),), (completed(JOB),))) == only(spending)


def test_a_reply_without_a_known_price_is_counted_and_not_added() -> None:
    amounts = only(after((reply(JOB, amount=None, basis="unknown"),)))
    assert amounts == Amounts(unpriced=1, images=1, replies=1)


def test_offline_pictures_cost_nothing_and_are_never_unpriced() -> None:
    spending = after((reply(JOB, amount=None, basis="offline"),), first=requested(JOB, offline=True, high=None))
    ((period, amounts),) = spending.rows()
    assert period.key == "" and amounts == Amounts(images=1, replies=1)
    assert after(first=requested(JOB, offline=True)).reserved == 0


def test_an_attempt_whose_outcome_is_unknown_counts_with_its_upper_estimate_once() -> None:
    suspected = Amounts(possibly_billed=MicroUSD(13_000))
    for ends in (
        [(JobInterrupted(job=JOB),)],
        [(JobCancelled(job=JOB, billed="unknown"),)],
        [(failed("unknown"),)],
        [(failed("unknown"), JobInterrupted(job=JOB))],
        [(failed("unknown"),), (JobInterrupted(job=JOB),)],
        [(failed("unknown"),), (JobCancelled(job=JOB, billed="unknown"),)],
        [(failed("unknown"),), (JobFailed(job=JOB, code="x", billed="unknown"),)],
    ):
        assert only(after(*ends)) == suspected, ends


def test_an_unknown_outcome_without_an_upper_estimate_is_unpriced() -> None:
    assert only(after((JobInterrupted(job=JOB),), first=requested(JOB, high=None))) == Amounts(unpriced=1)


def test_two_unknown_attempts_of_one_job_count_twice_and_the_third_is_still_reserved() -> None:
    spending = after((failed("unknown"),), (attempt(JOB, 2),), (failed("unknown", number=2),), (attempt(JOB, 3),))
    assert only(spending) == Amounts(possibly_billed=MicroUSD(26_000)) and spending.reserved == 13_000


def test_a_priced_reply_that_had_no_bound_is_counted_as_not_estimated() -> None:
    amounts = only(after((reply(JOB),), first=requested(JOB, high=None)))
    assert amounts.unestimated == 1 and (amounts.settled, amounts.estimated_high) == (11_000, 0)


def test_a_lost_attempt_is_in_doubt_until_somebody_resolves_it() -> None:
    doubtful = after((JobInterrupted(job=JOB),))
    assert list(doubtful.suspicions) == [JOB]
    assert only(after((JobInterrupted(job=JOB),), (resolved(JOB, "no"),))) == Amounts()
    billed = after((JobInterrupted(job=JOB),), (resolved(JOB, "yes", 8_000),))
    assert only(billed) == Amounts(settled=MicroUSD(8_000)) and not billed.suspicions


def test_what_was_billed_without_a_known_amount_is_unpriced() -> None:
    ends = ((JobInterrupted(job=JOB),), (resolved(JOB, "yes", None),))
    assert only(after(*ends, first=requested(JOB, high=None))) == Amounts(unpriced=1)


def test_every_lost_attempt_of_a_job_is_resolved_with_it() -> None:
    lost = ((failed("unknown"),), (attempt(JOB, 2),), (failed("unknown", number=2), JobInterrupted(job=JOB)))
    assert only(after(*lost, (resolved(JOB, "yes", 9_000),))) == Amounts(settled=MicroUSD(9_000))


def test_it_is_counted_on_the_day_of_the_attempt_whenever_it_is_resolved() -> None:
    spending, board = Spending(), JobBoard()
    story = [(requested(JOB),), (JobStarted(job=JOB),), (attempt(JOB),), (JobInterrupted(job=JOB),), (resolved(JOB, "yes"),)]
    for position, events in enumerate(story, start=2):
        one = commit(position, *events, at=DAWN + timedelta(days=40 * (position == 6)))
        board.apply(one)
        spending.apply(one)
    assert only(spending).settled == 8_000


def test_nobody_resolves_what_was_never_in_doubt_or_is_resolved() -> None:
    for ends in (
        [(reply(JOB),), (completed(JOB),)],
        [(JobCancelled(job=JOB),)],
        [(JobInterrupted(job=JOB),), (resolved(JOB, "no"),)],
        [],
    ):
        with pytest.raises(IllegalTransition):
            after(*ends, (resolved(JOB, "yes"),))
    spending = after((reply(JOB),))  # also where the board has dropped the job long ago
    with pytest.raises(IllegalTransition, match="nobody doubted"):
        spending.apply(commit(9, resolved(JOB, "yes")))


def test_what_was_not_billed_is_not_counted() -> None:
    for ends in ([(failed("no"),)], [(JobCancelled(job=JOB),)], [(failed("no"), JobFailed(job=JOB, code="x", billed="no"))]):
        assert not list(after(*ends).rows())
    assert after((failed("no"),)).reserved == 13_000
    assert after((JobCancelled(job=JOB),)).reserved == 0


def test_a_billed_reply_that_was_of_no_use_is_settled() -> None:
    cost = Cost(amount=MicroUSD(7_000), basis="usage", table="t")
    assert only(after((failed("yes", cost=cost),))).settled == 7_000
    assert only(after((failed("yes"),))).unpriced == 1


def test_money_is_counted_on_the_utc_day_on_which_it_was_spent() -> None:
    tokyo = timezone(timedelta(hours=9))
    spending = Spending()
    for number, hour in enumerate((8, 9), start=1):  # 23:00 and midnight, UTC
        at = datetime(2026, 11, 23, hour, tzinfo=tokyo)
        spending.apply(commit(number + 1, requested(job_id(number)), attempt(job_id(number)), reply(job_id(number)), at=at))
    assert [period.day for period, _ in spending.rows()] == ["2026-11-22", "2026-11-23"]


def attempts_of_unknown_outcome(commits: Iterable[Commit]) -> int:
    """Counted another way: attempts that were open when a fact said that nobody knows."""
    open_attempts: set[JobId] = set()
    unknown = 0
    for event in (event for one in commits for event in one.events):
        match event:
            case AttemptStarted():
                open_attempts.add(event.job)
            case ReplyReceived():
                open_attempts.discard(event.job)
            case AttemptFailed(billed=billed):
                unknown += billed == "unknown"
                open_attempts.discard(event.job)
            case JobInterrupted() | JobCancelled(billed="unknown"):
                unknown += event.job in open_attempts
                open_attempts.discard(event.job)
            case JobCancelled():
                open_attempts.discard(event.job)
    return unknown


@given(st.lists(st.integers(0, 4095), max_size=60))
def test_in_any_history_each_attempt_is_counted_once_and_live_jobs_are_reserved(choices: list[int]) -> None:
    commits = commits_of(choices)
    spending, board = Spending(), JobBoard()
    for one in commits:
        board.apply(one)
        spending.apply(one)
    bounded = {
        event.job
        for one in commits
        for event in one.events
        if isinstance(event, JobRequested) and event.estimate.high is not None and event.account.backend == "openai"
    } - {event.job for one in commits for event in one.events if isinstance(event, JobResolved)}
    priced = [
        Commit(position=one.position, at=one.at, events=tuple(e for e in one.events if getattr(e, "job", None) in bounded))
        for one in commits
    ]
    total = sum(amounts.possibly_billed for _, amounts in spending.rows())
    assert total == 13_000 * attempts_of_unknown_outcome(priced)
    live = Spending(dict(spending.rows()), reservations_of(board), spending.suspicions)
    assert live == spending
    assert spending.copy() == spending and spending.copy() is not spending


def test_spendings_differ_when_their_reservations_do() -> None:
    assert after() != Spending() and after() != after((reply(JOB),))
