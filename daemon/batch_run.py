"""One run of a batch: what has been asked for, what came of it, and what is asked next. Blocking; one connection.

Rule: which job is which is written in its idempotency key, so a batch that was stopped anywhere, however rudely, goes
on where it was when the same command is given again. What may have been paid for is never asked for again by itself.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from daemon import bridge
from daemon.arguments import State
from daemon.batch_plan import Order, Plan
from daemon.results import CostResult
from tools import batch_config

WAIT_SECONDS_MAX = 30.0  # for one question to the daemon; it answers earlier when something has changed
STOP_SECONDS_MAX = 20.0  # for what was cancelled to say how it ended
TRIES_MAX = 100  # of one job, over all runs: nobody means more, and each run asks its way through them
MAYBE_ORDERED = ("index_unavailable", "internal_error")  # refusals that may come after the job has been recorded

Ask = Callable[..., dict[str, Any]]
Status = Literal["waiting", "running", "completed", "failed", "cancelled", "interrupted"]
T = TypeVar("T")


class Clock(NamedTuple):
    """Seconds since some beginning, and a way to let some pass."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class _Image(msgspec.Struct, frozen=True):
    path: str | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a `results.JobReport` that concerns a batch, read back from the connection."""

    job_id: str
    state: State
    created_at: str
    updated_at: str
    billed: str
    message: str
    error_code: str
    error: str
    cost: CostResult
    images: tuple[_Image, ...]
    log_position: int
    warnings: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        return self.state not in ("pending", "running")


class _JobsNow(msgspec.Struct, frozen=True):
    position: int
    jobs: tuple[Report, ...]


class _DaemonNow(msgspec.Struct, frozen=True):
    log_position: int


class _No(NamedTuple):
    """Why there is no job to report on."""

    code: str
    message: str
    status: Status
    billed: str


class Task:
    """One job of the batch on its way. Changed by `Run` only.

    `number` is that of its present try over all runs, `retries` how many of them this run made. `doubtful` counts
    earlier tries that may have been billed.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.number = 0
        self.retries = 0
        self.doubtful = 0
        self.ready_at = 0.0
        self.report: Report | None = None
        self.done_before = False
        self.stage: Literal["waiting", "asked", "running", "over"] = "waiting"
        self._no: _No | None = None

    @property
    def over(self) -> bool:
        return self.stage == "over"

    @property
    def status(self) -> Status:
        """As users see it; what was asked for without an answer may well be running."""
        if self.stage == "waiting":
            return "waiting"
        if self._no is not None:
            return self._no.status
        return "running" if self.report is None or self.report.state == "pending" else self.report.state

    @property
    def billed(self) -> str:
        """Of the present try, as far as is known; `doubtful` tells of earlier ones."""
        if self._no is not None:
            return self._no.billed
        if self.stage == "waiting":
            return "no"
        return self.report.billed if self.report is not None and self.over else "unknown"

    @property
    def error_code(self) -> str:
        if self._no is not None:
            return self._no.code
        return self.report.error_code if self.report else ""

    @property
    def error(self) -> str:
        if self._no is not None:
            return self._no.message
        if self.report is None or self.report.state in ("completed", "pending", "running"):
            return ""
        return self.report.error or self.report.message

    def ask(self) -> None:
        """From here on it may be running, whatever came of an earlier try."""
        self.report, self._no, self.stage = None, None, "asked"

    def take(self, report: Report) -> None:
        self.report, self._no = report, None
        self.stage = "over" if report.is_over else "running"

    def refuse(self, code: str, message: str) -> None:
        billed = "unknown" if code in MAYBE_ORDERED else "no"
        self.report, self._no, self.stage = None, _No(code, message, "failed", billed), "over"

    def try_again_at(self, moment: float) -> None:
        # The next number only where there is a job under this one: a gap in the numbers would end the search for
        # the latest try at the next run, which would then draw what is there already.
        self.number += self.report is not None
        self.retries += 1
        self.ready_at, self.stage = moment, "waiting"

    def leave(self) -> None:
        """It is not asked for any more; a try that failed before stays what it was."""
        if self.report is None and self._no is None:
            self._no = _No("timeout", "The time was up before this picture was asked for.", "cancelled", "no")
        self.stage = "over"


class Run:
    def __init__(self, plan: Plan, *, retry_unknown: bool, clock: Clock, watch: Callable[[Sequence[Task]], None]) -> None:
        self.tasks = tuple(Task(order) for order in plan.orders)
        self.timed_out = False
        self._plan = plan
        self._retry_unknown = retry_unknown
        self._clock = clock
        self._watch = watch
        self._give_up_at = clock.now() + plan.pace.timeout_ms / 1000
        self._began_at: int | None = None  # the log's position; what was over by then belongs to an earlier run
        self._position = 0

    def go_on(self, ask: Ask) -> None:
        """Returns when every job is over or the time is up. May be called again with another connection.

        Raises:
            NotRunning: the daemon went away.
            bridge.Trouble: the daemon refuses what it must not refuse.
        """
        if self._began_at is None:
            self._began_at = _result(ask("get_status"), _DaemonNow).log_position
        while not self.timed_out and not all(task.over for task in self.tasks):
            if self._clock.now() >= self._give_up_at:
                self.timed_out = True
            else:
                self._hand_over(ask)
                self._wait(ask, self._seconds_until_next())
        if self.timed_out:
            self._stop(ask)

    @property
    def _running(self) -> list[Task]:
        return [task for task in self.tasks if task.stage == "running"]

    @property
    def _waiting(self) -> list[Task]:
        """With what was asked for just when the connection broke: the same key finds it again."""
        return [task for task in self.tasks if task.stage in ("waiting", "asked")]

    @property
    def _has_room(self) -> bool:
        return len(self._running) < self._plan.pace.max_concurrent

    def _hand_over(self, ask: Ask) -> None:
        """Fills the places that are free."""
        while self._has_room and self._clock.now() < self._give_up_at:
            task = next((task for task in self._waiting if task.ready_at <= self._clock.now()), None)
            if task is None:
                return
            self._ask_for(task, ask)
            self._watch(self.tasks)

    def _ask_for(self, task: Task, ask: Ask) -> None:
        """Finds the latest try of this job, or makes the next one."""
        while True:
            task.ask()
            key = batch_config.key(task.order.identity, task.number)
            reply = ask("start_generation_job", **task.order.arguments, idempotency_key=key)
            refused = reply.get("refused")
            if refused is not None:
                task.refuse(str(refused.get("code", "")), str(refused.get("message", "")))
                self._consider_another_try(task)
                return
            report = _result(reply, Report)
            task.done_before = report.is_over and report.log_position <= (self._began_at or 0)
            if not task.done_before or not self._may_ask_again(report) or task.number >= TRIES_MAX:
                self._take(task, report)
                return
            task.doubtful += report.billed != "no"
            task.number += 1

    def _may_ask_again(self, earlier: Report) -> bool:
        """What is there, or paid for and kept, is not; what may be paid for only if the user says so."""
        if earlier.state == "completed" or earlier.billed == "yes":
            return False
        return earlier.billed == "no" or self._retry_unknown

    def _take(self, task: Task, report: Report) -> None:
        task.take(report)
        if report.state == "failed" and not task.done_before:
            self._consider_another_try(task)

    def _consider_another_try(self, task: Task) -> None:
        """Only where surely nothing was billed, and the batch file wants it."""
        retries = self._plan.retries
        if self.timed_out or task.billed != "no":
            return
        if task.retries < retries.retries_max and retries.wants(task.error_code, task.error):
            task.try_again_at(self._clock.now() + retries.delay_ms / 1000)

    def _seconds_until_next(self) -> float:
        """Until there is something to do although no job has changed."""
        moments = [self._give_up_at]
        if self._has_room:
            moments += [task.ready_at for task in self._waiting]
        return max(0.0, min(moments) - self._clock.now())

    def _wait(self, ask: Ask, seconds: float) -> None:
        """For one of our jobs to change, at most so long."""
        running = {task.report.job_id: task for task in self._running if task.report}
        if not running:
            if self._waiting:
                self._clock.sleep(seconds)
            return
        seconds = min(seconds, WAIT_SECONDS_MAX)
        reply = ask("wait_for_jobs", job_ids=list(running), after=self._position, wait_seconds=seconds)
        waited = _result(reply, _JobsNow)
        self._position = waited.position
        for report in waited.jobs:
            if report.job_id in running:
                self._take(running[report.job_id], report)
        self._watch(self.tasks)

    def _stop(self, ask: Ask) -> None:
        """Nothing new is asked for; what was is cancelled, and gets a moment to say how it ended."""
        for task in self._waiting:
            if task.stage == "waiting":
                task.leave()
        # What waits in the daemon goes first: it would take the places of the running ones as they end.
        for task in sorted(self._running, key=lambda task: task.report is None or task.report.state != "pending"):
            if task.report is not None:
                ask("cancel_job", job_id=task.report.job_id)  # refused where it has just ended, as the next answer shows
            self._watch(self.tasks)
        give_up_at = self._clock.now() + STOP_SECONDS_MAX
        while self._running and self._clock.now() < give_up_at:
            self._wait(ask, give_up_at - self._clock.now())


def _result(reply: dict[str, Any], kind: type[T]) -> T:
    """The answer as a struct. Raises bridge.Trouble for a refusal that we cannot do anything about."""
    if "refused" in reply:
        raise bridge.Trouble(str(reply["refused"].get("message", "the daemon refused.")))
    try:
        return msgspec.convert(reply["result"], kind)
    except (msgspec.ValidationError, KeyError) as exc:
        raise bridge.Trouble(f"the daemon answered in a way that this version does not understand ({exc}); restart it.") from exc
