"""Faults to plant in the daemon, each of which the simulation has to find: what it would cost to get one order wrong.

Each function plants one. All of them are mistakes that a program like this has been shipped with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from daemon import decisions, forgetting, supervisor
from daemon.budgets import Budget
from daemon.house import House
from daemon.ledger import Decision, Facts, Ledger, Views
from daemon.worker import Worker
from eventlog import log as log_module
from eventlog import rewriting, spending
from eventlog.events import AttemptFailed, AttemptStarted, Commit, Event, JobRequested, ReplyReceived
from eventlog.forgetting import Traces, find
from eventlog.jobs import Job, Stage
from eventlog.log import EventLog
from eventlog.segments import Read, Scan, segment_name
from eventlog.spending import Period, Spending
from eventlog.values import Blob, JobId, MicroUSD, Position, digest
from tests import simulation
from tests.eventlog.disks import SimulatedDisk
from tests.simulation_witness import WatchedLedger, WatchedStore
from tools import files
from tools.openai_api import Failure, Reply

Plant = Callable[[pytest.MonkeyPatch], None]


class Without:
    """A disk that only pretends to do one thing. A part of the program that has it leaves that thing out."""

    def __init__(self, disk: SimulatedDisk, left_out: str) -> None:
        self._disk = disk
        self._left_out = left_out

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name == self._left_out else getattr(self._disk, name)


def log_leaves_out(what: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(simulation, "EventLog", lambda *args, disk, **how: EventLog(*args, disk=Without(disk, what), **how))  # type: ignore[arg-type]

    return plant


def store_leaves_out(what: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        opened = WatchedStore.open
        patch.setattr(WatchedStore, "open", lambda path, disk: opened(path, Without(disk, what)))  # type: ignore[arg-type]

    return plant


def finished_files_leave_out(what: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(simulation, "Worker", lambda *args, disk, **how: Worker(*args, disk=Without(disk, what), **how))  # type: ignore[arg-type]

    return plant


def new_folders_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedDisk, "let_names_last", lambda disk, directory: None)


class _Promises:
    """Stands in the store's place and keeps nothing."""

    def put(self, data: bytes) -> Blob:
        return Blob(sha256=digest(data), size_bytes=len(data))

    def spool(self, name: str, data: bytes) -> None:
        pass


def reply_is_recorded_before_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    async def receive(self: Worker, job: Job, started: AttemptStarted, reply: Reply) -> Failure | None:
        store, self._store = self._store, _Promises()  # type: ignore[assignment]
        received = self._keep(job, started, reply)
        self._store = store
        await self._ledger.record(decisions.receive_reply(received))
        await self._run_blocking(partial(self._keep, job, started, reply))
        return None

    patch.setattr(Worker, "_receive", receive)


def completion_is_recorded_before_the_files_are_placed(patch: pytest.MonkeyPatch) -> None:
    async def finish(self: Worker, job: Job, *, resumed: bool) -> None:
        with trio.CancelScope(shield=True):
            disk, self._disk = self._disk, SimulatedDisk()
            completed, words = self._place(job, resumed, [])
            self._disk = disk
            await self._ledger.record(decisions.complete_job(completed, words))
            await self._run_blocking(partial(self._place, job, resumed, []))

    patch.setattr(Worker, "_finish", finish)


def unknown_outcome_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    understand = Worker._understand

    async def hopefully(self: Worker, job: Job, outcome: Any, key: Any) -> Reply | Failure:
        answer = await understand(self, job, outcome, key)
        if isinstance(answer, Failure) and answer.billed == "unknown":
            return answer._replace(code="server_error", billed="no", retry="later")
        return answer

    patch.setattr(Worker, "_understand", hopefully)


def attempt_that_was_open_at_a_crash_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    def recover(job_id: JobId, spooled: ReplyReceived | None) -> Decision:
        def decide(views: Views) -> Facts:
            job = views.board.get(job_id)
            assert job is not None and job.stage is Stage.ATTEMPTING
            if spooled is not None:
                return Facts((spooled,))
            return Facts((AttemptFailed(job=job_id, attempt=job.attempts, code="server_error", billed="no"),))

        return decide

    patch.setattr(decisions, "recover", recover)


def reservation_is_made_after_the_call(patch: pytest.MonkeyPatch) -> None:
    apply = Spending.apply

    def later(self: Spending, commit: Commit) -> tuple[Period, ...]:
        periods = apply(self, commit)
        for event in commit.events:
            if isinstance(event, JobRequested):
                reserved = self._reservations[event.job]
                self._reservations[event.job] = msgspec.structs.replace(reserved, high=MicroUSD(0))
        return periods

    patch.setattr(Spending, "apply", later)


def budget_does_not_see_what_is_reserved(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Budget, "left", property(lambda self: MicroUSD(max(0, self.cap - self.spent))))


def budget_does_not_see_what_may_have_been_billed(patch: pytest.MonkeyPatch) -> None:
    def settled_only(self: Spending, period: str) -> MicroUSD:
        return MicroUSD(sum(amounts.settled for of, amounts in self.rows() if of.day.startswith(period)))

    patch.setattr(Spending, "spent_in", settled_only)


def lost_attempt_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Spending, job: JobId, commit: Commit) -> Period:
        return self._add(spending._period(self._reservations[job], commit), spending.Amounts())

    patch.setattr(Spending, "_suspect", forget)


def torn_tail_is_taken_for_the_log(patch: pytest.MonkeyPatch) -> None:
    repair = EventLog._repair

    def accept(self: EventLog, scan: Scan, segments: list[int], batch: list[Read]) -> tuple[int, str]:
        if segments:
            assert self._directory is not None
            last = self._disk.open(self._directory, segment_name(segments[-1]))
            scan.end = segments[-1] + self._disk.size(last)
            self._disk.close(last)
        return repair(self, scan, segments, batch)

    patch.setattr(EventLog, "_repair", accept)


def last_batch_is_not_written_again_at_the_start(patch: pytest.MonkeyPatch) -> None:
    repair = EventLog._repair
    patch.setattr(EventLog, "_repair", lambda self, scan, segments, batch: repair(self, scan, segments, []))


def failed_sync_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    sync = SimulatedDisk.sync

    def stubborn(self: SimulatedDisk, fd: int) -> None:
        try:
            sync(self, fd)
        except OSError:
            sync(self, fd)

    patch.setattr(SimulatedDisk, "sync", stubborn)


def fact_is_acknowledged_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    async def at_once(self: Ledger, position: Position) -> None:
        self._raise_if_broken()
        await trio.lowlevel.checkpoint()

    patch.setattr(Ledger, "durable", at_once)


def request_leaves_before_its_fact_is_durable(patch: pytest.MonkeyPatch) -> None:
    record = WatchedLedger.record

    async def hasty(self: WatchedLedger, decide: Decision) -> tuple[Event, ...]:
        if "start_attempt" in decide.__qualname__:
            return (await self._accept_or_look_for_room(decide)).events
        return await record(self, decide)

    patch.setattr(WatchedLedger, "record", hasty)


def spooled_reply_is_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(supervisor, "_spooled", lambda store, job: None)


def figures_are_spooled_before_the_pictures_are_stored(patch: pytest.MonkeyPatch) -> None:
    keep = Worker._keep

    def figures_first(self: Worker, job: Job, started: AttemptStarted, reply: Reply) -> ReplyReceived:
        store, self._store = self._store, _Promises()  # type: ignore[assignment]
        received = keep(self, job, started, reply)
        self._store = store
        self._store.spool(started.client_request_id, msgspec.json.encode(received))
        for image in reply.images:
            self._store.put(image.data)
        return received

    patch.setattr(Worker, "_keep", figures_first)


def file_takes_its_name_before_it_is_whole(patch: pytest.MonkeyPatch) -> None:
    def in_place(self: files.OutputRoot, folder: int, temporary: str, name: Any, adopted: Any) -> str:
        return str(name.candidate(0))

    patch.setattr(files.OutputRoot, "_take", in_place)


def forgetting_is_not_finished(patch: pytest.MonkeyPatch) -> None:
    async def later(house: House) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(forgetting, "finish", later)


def forgetting_takes_what_is_shared(patch: pytest.MonkeyPatch) -> None:
    def all_of_it(*args: Any, **how: Any) -> Traces:
        traces = find(*args, **how)
        return traces._replace(blobs=traces.blobs | traces.shared)

    patch.setattr(forgetting, "find", all_of_it)


def forgetting_leaves_the_torn_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(log_module, "sweep", lambda disk, directory: disk.sync_directory(directory))


def forgetting_leaves_out(what: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        write = rewriting._write
        patch.setattr(rewriting, "_write", lambda disk, *how: write(Without(disk, what), *how))  # type: ignore[arg-type]

    return plant


PLANTS: dict[str, tuple[Plant, str]] = {
    "the log leaves out the sync": (log_leaves_out("sync"), "damaged|lost|not at byte"),
    "the log leaves out the sync of its directory": (log_leaves_out("sync_directory"), "damaged|lost|not at byte"),
    "the store leaves out the sync": (store_leaves_out("sync"), "names a picture that cannot be had"),
    "the store leaves out the sync of its directories": (
        store_leaves_out("sync_directory"),
        "names a picture that cannot be had",
    ),
    "finished files leave out the sync": (finished_files_leave_out("sync"), "is completed, and .* is something else"),
    "finished files leave out the sync of their directory": (finished_files_leave_out("sync_directory"), "is not there"),
    "folders found are not synced": (new_folders_are_not_synced, "cannot be had|is not there"),
    "fact before file: the reply": (reply_is_recorded_before_it_is_stored, "names a picture that cannot be had"),
    "fact before file: the spool": (figures_are_spooled_before_the_pictures_are_stored, "names a picture that cannot be had"),
    "fact before file: the end": (completion_is_recorded_before_the_files_are_placed, "is completed, and"),
    "fact before file: the name": (file_takes_its_name_before_it_is_whole, "is completed, and"),
    "acknowledged before it is durable": (fact_is_acknowledged_before_it_is_durable, "is lost|no durable fact|requests follow"),
    "sent before it is durable": (request_leaves_before_its_fact_is_durable, "no durable fact|requests follow"),
    "retry after unknown outcome": (unknown_outcome_is_tried_again, "asks again unbidden|was billed"),
    "retry after a crash": (attempt_that_was_open_at_a_crash_is_tried_again, "asks again unbidden|was billed"),
    "reservation after the call": (reservation_is_made_after_the_call, "reserved"),
    "budget without what is reserved": (budget_does_not_see_what_is_reserved, "exceeds the budget"),
    "budget without what may be billed": (budget_does_not_see_what_may_have_been_billed, "exceeds the budget"),
    "lost attempt not counted": (lost_attempt_is_not_counted, "are settled, suspected or reserved"),
    "torn tail accepted": (torn_tail_is_taken_for_the_log, "damaged|lost|not at byte"),
    "last batch not written again": (last_batch_is_not_written_again_at_the_start, "damaged|lost|not at byte"),
    "failed sync tried again": (failed_sync_is_tried_again, "cannot be had|damaged|lost|not at byte|something else|not there"),
    "forgetting leaves out the sync": (forgetting_leaves_out("sync"), "damaged|lost|not at byte|cannot be had"),
    "forgetting not finished at the next start": (forgetting_is_not_finished, "was not finished on a good disk"),
    "forgetting without sweeping": (forgetting_leaves_the_torn_ends, "could not be written|stand in"),
    "forgetting what is another's": (forgetting_takes_what_is_shared, "names a picture that cannot be had"),
    "spooled reply ignored": (spooled_reply_is_not_looked_for, "was spooled, and its job does not have it"),
}
"""Each with what the witness may have to say: a mistake shows itself in one way or another, by the seed."""
