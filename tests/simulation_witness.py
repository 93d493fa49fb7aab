"""What the simulated daemon has promised, and whether it holds after a crash.

Each check is one function whose name says the promise and whose refusal says how it was broken. The witness
believes what it has seen itself - facts as they were acknowledged, replies as they were spooled, requests as
they went out - and holds the log, the views and the store against it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from daemon.ledger import Decision, Facts, Ledger, Views
from eventlog.audit import verify
from eventlog.errors import IllegalTransition
from eventlog.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobRequested,
    JobResolved,
    ReplyReceived,
)
from eventlog.index import Index
from eventlog.jobs import Job, JobBoard, Stage
from eventlog.segments import Located, Mark, read_log
from eventlog.spending import Spending
from eventlog.values import JobId, Picture, Position, Sha256, digest
from tests.eventlog.disks import SimulatedDisk
from tests.simulation_api import Api, Sent
from tools.errors import FileFailed
from tools.files import Store

EVENTS = Path("/home/events")
STORE = Path("/home/store")
ENDINGS = (JobCompleted, JobFailed, JobCancelled, JobInterrupted)


class Violation(AssertionError):
    """A promise was broken."""


def insist(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


class WatchedLedger(Ledger):
    """Tells the witness what it has acknowledged, and where it should stand."""

    def watch(self, witness: "Witness") -> None:
        self._witness = witness

    async def record(self, decide: Decision) -> tuple[Event, ...]:
        position = Position(0)

        def noted(views: Views) -> Facts:
            nonlocal position
            position = Position(self.position + 1)
            return decide(views)

        events = await super().record(noted)
        if events:
            self._witness.acknowledged[position] = events
        return events


class WatchedStore(Store):
    """Tells the witness which replies it has spooled."""

    def watch(self, witness: "Witness") -> None:
        self._witness = witness

    def spool(self, name: str, data: bytes) -> None:
        super().spool(name, data)
        self._witness.spooled[name] = data


class House(NamedTuple):
    """What a recovery has built. `located` is the whole log, `board` and `spending` are that log replayed."""

    disk: SimulatedDisk
    ledger: Ledger
    index: Index
    store: Store
    located: tuple[Located, ...]
    board: JobBoard
    spending: Spending

    @classmethod
    def read(cls, disk: SimulatedDisk, ledger: Ledger, index: Index, store: Store) -> "House":
        board, spending = JobBoard(), Spending()
        located = tuple(read_log(EVENTS, None, disk))
        for commit, _, _ in located:
            try:
                board.apply(commit)
                spending.apply(commit)
            except IllegalTransition as exc:
                raise Violation(f"commit {commit.position} does not follow: {exc}") from exc
        return cls(disk, ledger, index, store, located, board, spending)

    def facts(self) -> list[tuple[Position, Event]]:
        return [(one.commit.position, event) for one in self.located for event in one.commit.events]


class Witness:
    """`acknowledged` are commits that `record` returned, `spooled` the replies that the store said were durable."""

    def __init__(self) -> None:
        self.acknowledged: dict[Position, tuple[Event, ...]] = {}
        self.spooled: dict[str, bytes] = {}
        self.api = Api(self.look_at_request)
        self.over: tuple[Job, ...] = ()
        self._seen: tuple[Mark, ...] = ()
        self._spending: Callable[[], Spending] = Spending

    def spend_by(self, ledger: Ledger) -> None:
        self._spending = lambda: ledger.spending

    def look_at_request(self, sent: Sent) -> None:
        """As it leaves."""
        insist(sent.id not in {before.id for before in self.api.sent}, f"{sent.id} was sent twice")
        job = _job_of(sent)
        for before in self.api.sent:
            insist(_job_of(before) != job or not before.billed, f"{before.id} may be billed, and {sent.id} asks again unbidden")
        self._insist_on_a_reservation(sent)

    def _insist_on_a_reservation(self, sent: Sent) -> None:
        """Stands for the budget: as long as all that may be billed is reserved first, a limit on the sum can hold."""
        under_way = sum(before.billed for before in self.api.sent if before.under_way) + sent.billed
        reserved = self._spending().reserved
        insist(reserved >= under_way, f"{sent.id} leaves with {reserved} reserved, and {under_way} may be billed")

    def inspect(self, house: House) -> None:
        """After a recovery, before anything new is begun."""
        self._acknowledged_facts_are_present(house)
        self._what_a_log_has_shown_stays(house)
        self._the_log_verifies(house)
        self._requests_follow_durable_facts(house)
        self._replies_are_obtainable(house)
        self._spooled_replies_are_in_the_log(house)
        self._facts_name_files_that_are_there(house)
        self._no_job_is_in_two_states(house)
        self._views_are_the_log_replayed(house)
        self._reservations_cover_what_is_billed(house)
        self.over = tuple(job for job in house.board if job.state.is_over and job.stage is not Stage.COMPLETED)

    def _acknowledged_facts_are_present(self, house: House) -> None:
        for position, events in self.acknowledged.items():
            insist(position <= len(house.located), f"commit {position} was acknowledged and is lost")
            found = house.located[position - 1].commit.events
            insist(found == events, f"commit {position} was acknowledged with other facts")
        self.acknowledged = {}  # from here on `_what_a_log_has_shown_stays` has them, by their hashes

    def _what_a_log_has_shown_stays(self, house: House) -> None:
        marks = tuple(one.mark for one in house.located)
        insist(marks[: len(self._seen)] == self._seen, "the log has lost or changed what an earlier recovery has shown")
        self._seen = marks

    def _the_log_verifies(self, house: House) -> None:
        found = verify(EVENTS, house.disk)
        insist(found.fault is None, f"the log does not verify: {found.fault}")
        insist(found.unfinished_bytes == 0, f"{found.unfinished_bytes} bytes follow the log's end after a recovery")

    def _requests_follow_durable_facts(self, house: House) -> None:
        started = {event.client_request_id: event for _, event in house.facts() if isinstance(event, AttemptStarted)}
        insist(len(self.api.sent) <= len(started), f"{len(self.api.sent)} requests follow {len(started)} AttemptStarted")
        for sent in self.api.sent:
            insist(sent.id in started, f"{sent.id} was sent, and no durable fact says so")
            insist(started[sent.id].body_sha256 == sent.body, f"{sent.id} was sent with another body than the log says")

    def _replies_are_obtainable(self, house: House) -> None:
        drawn = {sent.id: sent.drawn for sent in self.api.sent}
        for _, event in house.facts():
            if isinstance(event, ReplyReceived):
                job = self._job(house, event.job)
                insist(job.pictures == event.pictures, f"{event.job} does not show the pictures of its reply")
                digests = tuple(picture.sha256 for picture in job.pictures)
                insist(digests == drawn[job.client_request_id], f"{event.job} shows other pictures than it was sent")
                _insist_on_pictures(house.store, event.pictures, f"the reply of {event.job}")

    def _spooled_replies_are_in_the_log(self, house: House) -> None:
        received = {(event.job, event.attempt) for _, event in house.facts() if isinstance(event, ReplyReceived)}
        for name, data in self.spooled.items():
            reply = msgspec.json.decode(data, type=ReplyReceived)
            insist((reply.job, reply.attempt) in received, f"the reply {name} was spooled, and its job does not have it")
        self.spooled = {}  # from here on the log has them

    def _facts_name_files_that_are_there(self, house: House) -> None:
        for one in house.located:
            for event in one.commit.events:
                match event:
                    case JobRequested(request=request):
                        _insist_on_pictures(house.store, request.sources, f"the order of {event.job}")
                    case AttemptFailed(kept=kept) if kept is not None:
                        _insist_on_blob(house.store, kept.sha256, f"the failure of {event.job}")
                    case JobCompleted():
                        paths = one.commit.words.paths if one.commit.words else ()
                        for image, path in zip(event.images, paths, strict=True):
                            data = house.disk.content_of(Path(path))
                            insist(data is not None, f"{event.job} is completed, and {path} is not there")
                            insist(digest(data or b"") == image.sha256, f"{event.job} is completed, and {path} is something else")

    def _no_job_is_in_two_states(self, house: House) -> None:
        endings = Counter(event.job for _, event in house.facts() if isinstance(event, ENDINGS))
        for job, count in endings.items():
            insist(count == 1, f"{job} ended {count} times")

    def _views_are_the_log_replayed(self, house: House) -> None:
        insist(_live(house.ledger.board) == _live(house.board), "the board is not the log replayed")
        insist(house.ledger.spending == house.spending, "the spending is not the log replayed")
        rows = {body.id: body for body in _rows(house.index)}
        insist(rows == {job.id: job for job in house.board}, "the index is not the log replayed")

    def _reservations_cover_what_is_billed(self, house: House) -> None:
        """Job by job: what OpenAI has billed is settled, suspected or still reserved."""
        settled: Counter[JobId] = Counter()
        for _, event in house.facts():
            if isinstance(event, ReplyReceived | AttemptFailed | JobResolved) and event.cost is not None:
                settled[event.job] += event.cost.amount or 0
        billed: Counter[JobId] = Counter()
        for sent in self.api.sent:
            billed[_job_of(sent)] += sent.billed
        for job_id, amount in billed.items():
            job = self._job(house, job_id)
            open_ = _reserved_for(job)
            suspected = sum(doubt.high or 0 for doubt in house.spending.suspicions.get(job_id, ()))
            covered = settled[job_id] + suspected + open_
            insist(covered >= amount, f"{job_id} was billed {amount}, of which {covered} are settled, suspected or reserved")
        in_sum = sum(amounts.settled for _, amounts in house.spending.rows())
        insist(in_sum == sum(settled.values()), f"{in_sum} are settled in all, where the facts add up to {sum(settled.values())}")
        doubts = sum(doubt.high or 0 for all_of_it in house.spending.suspicions.values() for doubt in all_of_it)
        possibly = sum(amounts.possibly_billed for _, amounts in house.spending.rows())
        insist(possibly == doubts, f"{possibly} are possibly billed in all, where single doubts add up to {doubts}")
        reserved = sum(map(_reserved_for, house.board))
        insist(house.spending.reserved == reserved, f"{house.spending.reserved} are reserved, where the jobs want {reserved}")

    def _job(self, house: House, job_id: JobId) -> Job:
        job = house.board.get(job_id)
        if job is None:
            raise Violation(f"{job_id} is not in the log")
        return job


def _job_of(sent: Sent) -> str:
    return sent.id.removeprefix("imaged-").rpartition("-")[0]


def _reserved_for(job: Job) -> int:
    """Until it is answered, or over; an offline picture costs nothing."""
    waits = not job.state.is_over and job.stage is not Stage.REPLIED
    return (job.estimate.high or 0) if waits and job.account.backend == "openai" else 0


def _live(board: JobBoard) -> dict[JobId, Job]:
    return {job.id: job for job in board if not job.state.is_over}


def _rows(index: Index) -> list[Job]:
    return [msgspec.json.decode(body, type=Job) for (body,) in index._db.execute("SELECT body FROM job")]


def _insist_on_pictures(store: Store, pictures: Sequence[Picture], of: str) -> None:
    for picture in pictures:
        _insist_on_blob(store, picture.sha256, of)


def _insist_on_blob(store: Store, sha256: Sha256, of: str) -> None:
    try:
        store.get(sha256)
    except FileFailed as exc:
        raise Violation(f"{of} names a picture that cannot be had: {exc}") from exc
