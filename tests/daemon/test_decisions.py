"""The rules, one by one, without a disk or a clock."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
from msgspec import structs

from daemon import decisions
from daemon.decisions import PENDING_JOBS_MAX, Terms
from daemon.errors import Refused
from daemon.ledger import Decision, Facts, Views
from eventlog.events import (
    AttemptFailed,
    Commit,
    JobCancelled,
    JobCancelRequested,
    JobEvent,
    JobFailed,
    JobInterrupted,
    JobStarted,
    RequestReceived,
)
from eventlog.jobs import JobBoard
from eventlog.recent import RecentOrders
from eventlog.spending import Spending
from eventlog.values import Account, Client, JobId, Position, Words
from tests.daemon import fakes
from tests.daemon.fakes import OFFLINE, PAYING

OTHER = Account(backend="openai", key="ffffffffffff", base_url="https://api.openai.com/v1")
TERMS = Terms(datetime(2026, 11, 22, tzinfo=UTC))
ASKED = RequestReceived(operation="generate_image", door="mcp", client=Client(name="test"))


def views(*facts: JobEvent, full: bool = False) -> Views:
    board, spending, recent = JobBoard(), Spending(), RecentOrders()
    for number, fact in enumerate(facts, start=1):
        commit = Commit(position=Position(number), at=datetime(2026, 11, 22, tzinfo=UTC), events=(fact,))
        board.apply(commit)
        spending.apply(commit)
        recent.apply(commit)
    return Views(board, spending, recent, full)


def decided(decision: Decision, *facts: JobEvent, full: bool = False) -> tuple[object, ...]:
    return decision(views(*facts, full=full)).events


def in_attempt(job: str = "a", account: Account = PAYING) -> tuple[JobEvent, ...]:
    return fakes.requested(job, account), fakes.started(job), fakes.attempt(job)


def test_the_request_and_the_job_are_one_decision() -> None:
    order = fakes.requested("a")
    assert decided(decisions.request_job(ASKED, order, Words(salt=""), TERMS)) == (ASKED, order)


def test_a_full_disk_refuses_new_jobs_and_nothing_else() -> None:
    with pytest.raises(Refused, match="full") as caught:
        decided(decisions.request_job(ASKED, fakes.requested("a"), Words(salt=""), TERMS), full=True)
    assert caught.value.code == "no_space"
    assert decided(decisions.start_job(JobId("a")), fakes.requested("a"), full=True)


def test_a_full_disk_keeps_requests_without_their_words() -> None:
    note = decisions.receive_request(ASKED, Words(salt="", message="long"))
    assert note(views()).words is not None
    assert note(views(full=True)) == Facts((ASKED,), None)


def test_a_queue_without_end_is_refused() -> None:
    waiting = [fakes.requested(str(number)) for number in range(PENDING_JOBS_MAX)]
    with pytest.raises(Refused) as caught:
        decided(decisions.request_job(ASKED, fakes.requested("one more"), Words(salt=""), TERMS), *waiting)
    assert caught.value.code == "too_many_jobs"


class Places(NamedTuple):
    by_key: Mapping[str, int]
    total_max: int

    def running_max(self, account: Account, /) -> int:
        return self.by_key.get(account.key or "offline", 0)


def plan(facts: list[JobEvent], total: int = 100, served: Sequence[Client] = (), **by_key: int) -> tuple[str, ...]:
    return tuple(job.id for job in decisions.plan(views(*facts).board, Places(by_key, total), served))


def test_pending_jobs_start_oldest_first_while_their_account_has_room() -> None:
    facts: list[JobEvent] = [fakes.requested(name, OFFLINE) for name in "abcd"]
    assert plan(facts, offline=2) == ("a", "b")
    assert plan([*facts, fakes.started("a")], offline=2) == ("b",)
    assert plan([*facts, fakes.started("a"), fakes.started("b")], offline=2) == ()


def test_one_account_does_not_wait_for_another_and_one_without_a_key_for_ever() -> None:
    facts: list[JobEvent] = [fakes.requested("a", PAYING), fakes.requested("b", OTHER), fakes.requested("c", OFFLINE)]
    assert plan(facts, offline=1, ffffffffffff=1) == ("b", "c")


def test_all_accounts_together_have_a_limit_in_which_one_that_waits_takes_no_place() -> None:
    facts: list[JobEvent] = [
        fakes.requested("a", PAYING),
        fakes.started("a"),
        fakes.requested("b", OTHER),
        fakes.requested("c", OTHER),
    ]
    assert plan(facts, total=2, ffffffffffff=4, **{PAYING.key: 1}) == ("b",)
    assert plan(facts, total=2, ffffffffffff=4, **{PAYING.key: 0}) == ("b", "c")


def ordered_by(client: str, *jobs: str) -> list[JobEvent]:
    return [structs.replace(fakes.requested(job, OFFLINE), client=Client(name=client)) for job in jobs]


def test_clients_take_turns_however_much_one_of_them_has_ordered() -> None:
    facts = [*ordered_by("loud", "a", "b", "c", "d"), *ordered_by("quiet", "e", "f")]
    assert plan(facts, offline=4) == ("a", "e", "b", "f")
    assert plan(facts, offline=1, served=[Client(name="loud")]) == ("e",)
    assert plan(facts, offline=1, served=[Client(name="quiet"), Client(name="loud")]) == ("e",)
    assert plan(facts, offline=1, served=[Client(name="loud"), Client(name="quiet")]) == ("a",)
    assert plan([*facts, *ordered_by("new", "g")], offline=1, served=[Client(name="loud"), Client(name="quiet")]) == ("g",)


@pytest.mark.parametrize("ending", [fakes.completed, fakes.failed])
def test_what_is_over_leaves_room(ending: object) -> None:
    facts: list[JobEvent] = [*in_attempt("a"), fakes.reply("a"), ending("a"), fakes.requested("b")]  # type: ignore[operator]
    assert plan(facts, **{PAYING.key: 1}) == ("b",)


def test_a_job_that_was_cancelled_while_it_waited_is_not_started() -> None:
    assert decided(decisions.start_job(JobId("a")), fakes.requested("a"), fakes.cancelled("a")) == ()
    assert decided(decisions.start_job(JobId("a")), fakes.requested("a")) == (JobStarted(job=JobId("a")),)


def test_no_attempt_starts_for_a_job_that_is_unwanted() -> None:
    facts = (fakes.requested("a"), fakes.started("a"))
    assert decided(decisions.start_attempt(fakes.attempt("a"), 1), *facts)
    assert decided(decisions.start_attempt(fakes.attempt("a"), 1), *facts, fakes.cancel_requested("a")) == ()


def test_an_attempt_waits_while_as_many_as_may_are_under_way() -> None:
    facts = [fakes.requested("b"), fakes.started("b"), *in_attempt("a")]
    assert decided(decisions.start_attempt(fakes.attempt("b"), 1), *facts) == ()
    assert decided(decisions.start_attempt(fakes.attempt("b"), 2), *facts)
    assert decided(decisions.start_attempt(fakes.attempt("b"), 1), *facts, fakes.reply("a"))


def failure(billed: str, *, final: bool) -> Facts:
    return decisions.fail_attempt(fakes.failed_attempt("a", billed=billed), "why", final=final)(views(*in_attempt()))


def test_a_failure_that_may_be_billed_interrupts_the_job_whatever_is_left_to_try() -> None:
    for final in (True, False):
        events = failure("unknown", final=final).events
        assert [type(event) for event in events] == [AttemptFailed, JobInterrupted]


def test_a_failure_that_was_not_billed_ends_the_job_only_when_it_is_final() -> None:
    assert [type(event) for event in failure("no", final=False).events] == [AttemptFailed]
    assert [type(event) for event in failure("no", final=True).events] == [AttemptFailed, JobFailed]
    words = failure("no", final=True).words
    assert words is not None and words.message == "why"


def test_cancelling_costs_nothing_before_the_start_and_is_a_wish_after_it() -> None:
    cancel = decisions.cancel_job(JobId("a"))
    assert decided(cancel, fakes.requested("a")) == (JobCancelled(job=JobId("a")),)
    assert decided(cancel, *in_attempt()) == (JobCancelRequested(job=JobId("a")),)
    assert decided(cancel, *in_attempt(), fakes.cancel_requested("a")) == ()


@pytest.mark.parametrize("ending", [(fakes.interrupted("a"),), (fakes.reply("a"), fakes.completed("a"))])
def test_what_is_over_cannot_be_cancelled(ending: tuple[JobEvent, ...]) -> None:
    with pytest.raises(Refused, match="already"):
        decided(decisions.cancel_job(JobId("a")), *in_attempt(), *ending)
    with pytest.raises(Refused, match="no job"):
        decided(decisions.cancel_job(JobId("b")), *in_attempt())


LEAVING = decisions.leave_job(JobId("a"))


def test_a_worker_that_leaves_inside_an_attempt_says_that_it_may_be_billed() -> None:
    (event,) = decided(LEAVING, *in_attempt())
    assert event == JobInterrupted(job=JobId("a"), code="outcome_unknown")
    (event,) = decided(LEAVING, *in_attempt(account=OFFLINE))
    assert event == JobInterrupted(job=JobId("a"), code="offline_interrupted")
    (event,) = decided(LEAVING, *in_attempt(), fakes.cancel_requested("a"))
    assert event == JobCancelled(job=JobId("a"), billed="unknown")
    (event,) = decided(LEAVING, *in_attempt(account=OFFLINE), fakes.cancel_requested("a"))
    assert event == JobCancelled(job=JobId("a"), billed="no")


def test_a_worker_that_leaves_elsewhere_leaves_the_job_to_the_next_start() -> None:
    assert decided(LEAVING, fakes.requested("a"), fakes.started("a")) == ()
    assert decided(LEAVING, *in_attempt(), fakes.reply("a")) == ()
    assert decided(LEAVING, *in_attempt(), fakes.reply("a"), fakes.completed("a")) == ()
    assert decided(LEAVING, fakes.requested("a"), fakes.started("a"), fakes.cancel_requested("a")) == (
        JobCancelled(job=JobId("a")),
    )


def test_after_a_crash_a_reply_that_was_kept_is_taken_and_a_lost_one_is_not_asked_for_again() -> None:
    kept = fakes.reply("a")
    assert decided(decisions.recover(JobId("a"), kept), *in_attempt()) == (kept,)
    (event,) = decided(decisions.recover(JobId("a"), None), *in_attempt())
    assert isinstance(event, JobInterrupted)
